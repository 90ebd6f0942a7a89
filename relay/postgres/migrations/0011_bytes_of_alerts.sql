-- What alerts take, by sender: so that one sender can be told that it stores too much. Null in
-- alerts that are older than this column: they are not counted.
alter table relay.alerts add column bytes integer;
create index alerts_of_a_sender on relay.alerts (sender, alert_id) where bytes is not null;

create table relay.alert_bytes (
    sender text primary key,
    bytes bigint not null
);

-- What came and went since that was summed up. Only added to, so no transaction waits for another.
create table relay.alert_byte_changes (
    sender text not null,
    bytes bigint not null
);
create index changes_of_a_sender on relay.alert_byte_changes (sender);

create function relay.set_alert_bytes() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    -- The row itself with its indices, about, and its values before they are compressed.
    new.bytes := 200 + octet_length(new.message) + coalesce(octet_length(new.metadata::text), 0);
    return new;
end
$$;
create trigger set_bytes before insert or update of message, metadata on relay.alerts
    for each row execute function relay.set_alert_bytes();

create function relay.count_alert_bytes() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'TRUNCATE' then
        insert into relay.alert_byte_changes (sender, bytes)
        select known.sender, -sum(known.bytes) from (
            select sender, bytes from relay.alert_bytes
            union all select sender, bytes from relay.alert_byte_changes
        ) as known group by known.sender;
        return null;
    end if;
    if tg_op <> 'DELETE' then
        insert into relay.alert_byte_changes (sender, bytes)
        select sender, sum(bytes) from new_rows where bytes is not null group by sender;
    end if;
    if tg_op <> 'INSERT' then
        insert into relay.alert_byte_changes (sender, bytes)
        select sender, -sum(bytes) from old_rows where bytes is not null group by sender;
    end if;
    return null;
end
$$;
revoke execute on function relay.count_alert_bytes() from public;
create trigger alerts_insert after insert on relay.alerts referencing new table as new_rows
    for each statement execute function relay.count_alert_bytes();
create trigger alerts_update after update on relay.alerts
    referencing old table as old_rows new table as new_rows
    for each statement execute function relay.count_alert_bytes();
create trigger alerts_delete after delete on relay.alerts referencing old table as old_rows
    for each statement execute function relay.count_alert_bytes();
create trigger alerts_truncate after truncate on relay.alerts
    for each statement execute function relay.count_alert_bytes();
