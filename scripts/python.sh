# Sourced by the scripts beside it, with $project set: finds a Python and keeps .venv up to date.

suits() {
    "$1" -I -c 'import sys; sys.exit(
        sys.implementation.name != "cpython" or sys.version_info < (3, 11)
        or sys.version_info >= (3, 15)
    )' >/dev/null 2>&1
}

makes_venvs() {
    "$1" -I -c 'import ensurepip' >/dev/null 2>&1
}

find_python() {
    without_venv=
    for python in "$project/.venv/bin/python" \
        python3 python3.14 python3.13 python3.12 python3.11 python; do
        if suits "$python"; then
            if makes_venvs "$python"; then
                return
            fi
            without_venv=${without_venv:-$python}
        fi
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
