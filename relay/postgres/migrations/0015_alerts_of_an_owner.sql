-- The owner of the stream in the life in which an alert was stored: what a user's streams have raised
-- is a range of one index, however many ids the user has.
alter table relay.alerts add column owner_id text;
update relay.alerts as a set owner_id = s.owner_id from relay.streams as s
where s.stream_id = a.stream_id and a.alert_id > s.alerts_from and coalesce(a.life, s.life) = s.life;
create index alerts_of_an_owner on relay.alerts (owner_id, alert_id);

-- As in migration 0012, but for the owner.
create or replace function relay.set_life_of_alert() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    stream relay.streams;
begin
    select * into stream from relay.streams as s where s.stream_id = new.stream_id;
    new.life := stream.life;
    new.owner_id := stream.owner_id;
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

-- A stream that another owner gets with its history keeps its life, and its alerts are that owner's.
create function relay.give_alerts_to_owner() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- Alerts that are being stored meanwhile would keep the owner before.
    perform relay.lock_alerts();
    update relay.alerts as a set owner_id = new.owner_id
    where a.stream_id = new.stream_id and a.alert_id > new.alerts_from
        and coalesce(a.life, new.life) = new.life;
    return null;
end
$$;
revoke execute on function relay.give_alerts_to_owner() from public;
create trigger give_alerts after update of owner_id on relay.streams for each row
    when (new.life = old.life and new.owner_id is distinct from old.owner_id)
    execute function relay.give_alerts_to_owner();
