-- Owners of streams whose user was deleted, as the trigger on the user table has seen it.
create table relay.deleted_owners (
    user_id text primary key,
    deleted_at timestamptz not null default now()
);

-- A trigger on Better Auth's user table; its argument is the column of ids. It runs inside whatever
-- transaction deletes users, so it must not fail.
create function relay.note_deleted_users() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    execute format(
        'insert into relay.deleted_owners (user_id) select distinct o.%1$I::text from old_rows as o'
        ' where exists (select from relay.streams as s where s.owner_id = o.%1$I::text)'
        ' on conflict (user_id) do update set deleted_at = now()', tg_argv[0]
    );
    return null;
exception when others then
    return null;
end
$$;
revoke execute on function relay.note_deleted_users() from public;

-- What an operator asks of all relays. Each looks once, and adds what it has done.
create table relay.operator_requests (
    request_id bigint generated always as identity primary key,
    user_id text, -- end the connections of this user, or
    connection bigint, -- this one, if it is of that user
    made_at timestamptz not null default now(),
    relays integer not null default 0, -- that have looked
    ended integer not null default 0, -- connections
    check (user_id is not null or connection is not null)
);
create function relay.notify_of_request() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform pg_notify('relay_changes', 'operator:' || new.request_id);
    return null;
end
$$;
create trigger notify after insert on relay.operator_requests
    for each row execute function relay.notify_of_request();
