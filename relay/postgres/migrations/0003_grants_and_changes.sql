create table relay.grants (
    user_id text not null, -- an id of Better Auth's user table, as text
    stream_id text not null, -- or '*'
    granted_at timestamptz not null default now(),
    primary key (user_id, stream_id)
);
create index grants_of_a_stream on relay.grants (stream_id);

-- Notifies of the rows that a statement changed: arguments are what they are and the column that
-- names them. Runs inside whatever transaction changes a table, so it must not fail, and a statement
-- that changes a great many says so in one word. Never tells a token.
create function relay.notify_of_changes() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    rows_of constant text :=
        case tg_op
            when 'INSERT' then 'select %1$I::text as id from new_rows'
            when 'DELETE' then 'select %1$I::text as id from old_rows'
            else 'select %1$I::text as id from old_rows union select %1$I::text from new_rows'
        end;
    changed text[];
    id text;
begin
    if tg_op <> 'TRUNCATE' then
        execute 'select array_agg(id) from (select id from ('
            || format(rows_of, tg_argv[1]) || ') as changed_rows where id is not null limit 1001) as few'
        into changed;
        if changed is null then
            return null;
        end if;
    end if;
    if tg_op = 'TRUNCATE' or array_length(changed, 1) > 1000 then
        perform pg_notify('relay_changes', 'everything');
        return null;
    end if;
    foreach id in array changed loop
        perform pg_notify('relay_changes', case
            when octet_length(id) > 7000 then 'everything' -- 8000 bytes are the most
            else tg_argv[0] || ':' || id
        end);
    end loop;
    return null;
end
$$;

create trigger grants_insert after insert on relay.grants referencing new table as new_rows
    for each statement execute function relay.notify_of_changes('user', 'user_id');
create trigger grants_update after update on relay.grants
    referencing old table as old_rows new table as new_rows
    for each statement execute function relay.notify_of_changes('user', 'user_id');
create trigger grants_delete after delete on relay.grants referencing old table as old_rows
    for each statement execute function relay.notify_of_changes('user', 'user_id');
create trigger grants_truncate after truncate on relay.grants
    for each statement execute function relay.notify_of_changes('user', 'user_id');

create trigger service_tokens_update after update on relay.service_tokens
    referencing old table as old_rows new table as new_rows
    for each statement execute function relay.notify_of_changes('service', 'name');
create trigger service_tokens_delete after delete on relay.service_tokens
    referencing old table as old_rows
    for each statement execute function relay.notify_of_changes('service', 'name');
create trigger service_tokens_truncate after truncate on relay.service_tokens
    for each statement execute function relay.notify_of_changes('service', 'name');
