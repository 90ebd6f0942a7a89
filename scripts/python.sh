# Sourced by the scripts beside it, with $project set: finds a Python and keeps .venv up to date.

# 0: it suits; 3: it would, if it could make virtual environments.
try_python() {
    "$1" -I -c 'if True:
        import importlib.util, sys
        if sys.implementation.name != "cpython" or not (3, 11) <= sys.version_info < (3, 15):
            sys.exit(1)
        sys.exit(0 if importlib.util.find_spec("ensurepip") else 3)
    ' >/dev/null 2>&1
}

find_python() {
    without_venv=
    for python in "$project/.venv/bin/python" \
        python3 python3.14 python3.13 python3.12 python3.11 python; do
        outcome=0
        try_python "$python" || outcome=$?
        case $outcome in
            0) return ;;
            3) [ "${python%/*}" != "$python" ] || without_venv=${without_venv:-$python} ;;
        esac
    done
    if [ -n "$without_venv" ]; then
        echo "relay: $without_venv cannot make virtual environments:" \
            "apt install $without_venv-venv (Debian, Ubuntu)" >&2
    else
        echo "relay: needs Python 3.11 to 3.14 and finds none: apt install python3 python3-venv" \
            "(Debian, Ubuntu), brew install python (macOS), or https://www.python.org" >&2
    fi
    exit 1
}

# PYTHONHOME would send a virtual environment elsewhere for its libraries.
unset PYTHONHOME

provide() {
    find_python
    "$python" -I "$project/scripts/environment.py" "$1" || exit
}
