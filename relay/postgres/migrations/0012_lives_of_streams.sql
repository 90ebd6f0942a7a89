-- A stream may have had other owners. Each change of its owner begins another life: the alerts of
-- the lives before are nobody's, and the grants and webhooks for the stream end with them.
create sequence relay.lives as bigint;
alter table relay.streams
    alter column owner_id drop not null, -- null: the next user that registers it becomes its owner
    add column life bigint not null default 0,
    add column life_began_at timestamptz,
    add column alerts_from bigint not null default 0, -- alerts up to this id are of lives before
    -- Whether the owner has registered it with sessions of Better Auth only; null: not known.
    add column owner_by_session boolean;
alter table relay.streams alter column life_began_at set default now();
update relay.streams set life_began_at = created_at;

-- The life in which it was stored. It tells an alert that was on its way while the owner changed
-- from those of the new life. Null in what is older than this column.
alter table relay.alerts add column life bigint;

create function relay.set_life_of_alert() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    stream relay.streams;
begin
    select * into stream from relay.streams as s where s.stream_id = new.stream_id;
    new.life := stream.life;
    if new.alert_key is not null then
        -- An alert of a life before does not keep this one from being new.
        update relay.alerts as a set alert_key = null
        where a.stream_id = new.stream_id and a.sender = new.sender
            and a.alert_key = new.alert_key
            and (a.alert_id <= stream.alerts_from or coalesce(a.life, stream.life) <> stream.life);
    end if;
    return new;
end
$$;
revoke execute on function relay.set_life_of_alert() from public;
create trigger set_life before insert on relay.alerts
    for each row execute function relay.set_life_of_alert();

create function relay.begin_life() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'INSERT' then
        new.life := nextval('relay.lives'); -- a role that inserts needs no right to the sequence
        return new;
    end if;
    if tg_op = 'UPDATE' then
        if new.owner_id is not distinct from old.owner_id then
            return new;
        end if;
        new.life_began_at := now();
        if new.owner_by_session is not distinct from old.owner_by_session then
            new.owner_by_session := null;
        end if;
        -- For this one transaction: see `relay stream transfer --with-history`.
        if current_setting('relay.with_history', true) = new.stream_id then
            return new;
        end if;
        new.life := nextval('relay.lives');
        new.alerts_from := greatest(old.alerts_from, coalesce(
            (select max(a.alert_id) from relay.alerts as a where a.stream_id = new.stream_id), 0
        ));
    end if;
    if old.owner_id is not null then
        delete from relay.raised_alerts as r where r.stream_id = old.stream_id; -- not stored yet
        delete from relay.grants as g where g.stream_id = old.stream_id;
        update relay.webhooks as w
        set given_up_at = now(), last_error = 'the stream has another owner'
        where w.stream_id = old.stream_id and w.given_up_at is null;
    end if;
    return case tg_op when 'DELETE' then old else new end;
end
$$;
revoke execute on function relay.begin_life() from public;
create trigger begin_life_on_update before update of owner_id on relay.streams
    for each row execute function relay.begin_life();
create trigger begin_life_on_insert before insert on relay.streams
    for each row execute function relay.begin_life();
create trigger begin_life_on_delete before delete on relay.streams
    for each row execute function relay.begin_life();

-- Notifies of the streams that a statement gave another owner or removed, as
-- `notify_of_changes` does of sessions.
create function relay.notify_of_owners() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    changed text[];
    id text;
begin
    if tg_op = 'UPDATE' then
        changed := array(
            select o.stream_id from old_rows as o where not exists (
                select from new_rows as n
                where n.stream_id = o.stream_id and n.owner_id is not distinct from o.owner_id
            ) limit 1001
        );
    elsif tg_op = 'DELETE' then
        changed := array(select o.stream_id from old_rows as o limit 1001);
    end if;
    if tg_op = 'TRUNCATE' or cardinality(changed) > 1000 then
        perform pg_notify('relay_changes', 'everything');
        return null;
    end if;
    foreach id in array changed loop
        perform pg_notify('relay_changes', case
            when octet_length(id) > 7000 then 'everything' else 'stream:' || id
        end);
    end loop;
    return null;
end
$$;
create trigger streams_update after update on relay.streams
    referencing old table as old_rows new table as new_rows
    for each statement execute function relay.notify_of_owners();
create trigger streams_delete after delete on relay.streams referencing old table as old_rows
    for each statement execute function relay.notify_of_owners();
create trigger streams_truncate after truncate on relay.streams
    for each statement execute function relay.notify_of_owners();
