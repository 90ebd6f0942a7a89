-- Which node of a cluster has which stream. Nothing in these two tables outlives the nodes, so they
-- are not logged: after a crash or a failover they are empty, and each node writes again what it has.
create unlogged table relay.nodes (
    node_id text collate "C" primary key, -- another one at each start of a process
    machine text not null,
    address text, -- HOST:PORT for other machines; null: they cannot reach it
    socket text, -- for the same machine
    certificate text not null,
    version text not null,
    draining boolean not null,
    seen_at timestamptz not null default clock_timestamp()
);
create unlogged table relay.live_streams (
    stream_id text collate "C" primary key,
    node_id text collate "C" not null,
    term bigint not null, -- grows with each change of the node
    accepted_at timestamptz not null, -- when the producer's connection was accepted, by this clock
    connection bigint not null, -- its number on that node
    owner_id text collate "C" not null,
    epoch bigint not null,
    status text not null check (status in ('online', 'streaming')),
    metadata json
);
create index live_streams_of_owner on relay.live_streams (owner_id, stream_id);
create index live_streams_of_node on relay.live_streams (node_id);

-- Locks that, unlike advisory locks, only a role can take that may update the table. Its rows are
-- locks of users, each of many; the table itself is the lock of `next_epoch`.
create table relay.claim_locks (lock_id integer primary key);
insert into relay.claim_locks (lock_id) select generate_series(0, 1023);

-- Epochs and terms are numbers of one sequence, at least the milliseconds since 1970: they grow over
-- all nodes and rows, whatever the clock does and whatever was lost with the tables above.
create sequence relay.epochs as bigint;
create function relay.next_epoch() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    chosen bigint;
begin
    begin
        -- Without it two could choose the same, or one could set the sequence back. What this block
        -- holds is released when it is rolled back; what was done to the sequence stays.
        lock table relay.claim_locks in share update exclusive mode;
        chosen := greatest(
            nextval('relay.epochs'), floor(extract(epoch from clock_timestamp()) * 1000)::bigint
        );
        perform setval('relay.epochs', chosen);
        raise exception using errcode = 'RL001';
    exception when sqlstate 'RL001' then
        return chosen;
    end;
end
$$;

-- Notifies of streams that have changed, by their ids only: any role may listen, and any may notify.
-- An id is no longer than 128 bytes, unless somebody else has written the row.
create function relay.notify_of_streams(changed text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    id text;
    payload text := '';
begin
    if cardinality(changed) > 50
        or exists (select from unnest(changed) as c (id) where octet_length(c.id) > 1000) then
        perform pg_notify('relay_streams', 'everything');
        return;
    end if;
    foreach id in array changed loop
        if octet_length(payload) + octet_length(id) >= 7000 then
            perform pg_notify('relay_streams', payload);
            payload := '';
        end if;
        payload := case payload when '' then 'streams:' else payload || ',' end || id;
    end loop;
    if payload <> '' then
        perform pg_notify('relay_streams', payload);
    end if;
end
$$;

-- Connections of a node ask to produce streams. `ages`: seconds since each was accepted, measured
-- right before asking. `most`: live streams that the user may have, or null; `replaced` does not
-- count. Rows are locked in the order of their ids, so that batches do not lock each other up, and
-- with the locks of their users before, so that nobody gets more streams than allowed.
--
-- The owners are those that `StreamTable.claim` gives.
create function relay.claim_streams(
    the_node text,
    streams text[],
    users text[],
    by_sessions boolean[],
    connections bigint[],
    ages double precision[],
    metadata json[],
    most integer[],
    replaced text[]
) returns table (
    place bigint, outcome text, owner text, term bigint, epoch bigint, node_before text
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    asked_at constant timestamptz := statement_timestamp(); -- waiting for locks does not count
    claim record;
    known record;
    held relay.live_streams;
    came_at timestamptz;
    written integer;
    has_to_last boolean := false;
    present text[] := '{}'; -- users who were noted as deleted
    changed text[] := '{}';
begin
    perform from relay.claim_locks as k where k.lock_id in (
        select hashtext(c.usr) & 1023 from unnest(streams, users, most) as c (id, usr, most)
        where c.most is not null
            and not exists (select from relay.live_streams as l where l.stream_id = c.id)
    ) order by k.lock_id for update;

    for claim in
        select * from unnest(
            streams, users, by_sessions, connections, ages, metadata, most, replaced
        ) with ordinality as c (id, usr, by_session, conn, age, metadata, most, replaced, place)
        order by c.id collate "C", c.conn
    loop
        place := claim.place;
        outcome := null;
        term := 0;
        epoch := 0;
        node_before := null;
        came_at := asked_at - make_interval(secs => claim.age);

        loop
            select s.owner_id, s.owner_by_session, exists (
                select from relay.deleted_owners as d where d.user_id = s.owner_id
            ) as gone into known from relay.streams as s where s.stream_id = claim.id;
            exit when known.owner_id is not null;
            begin
                -- Who loses a race waits for the winner's commit, and the next select sees it.
                if found then
                    update relay.streams as s
                    set owner_id = claim.usr, owner_by_session = claim.by_session
                    where s.stream_id = claim.id and s.owner_id is null;
                else
                    insert into relay.streams (stream_id, owner_id, owner_by_session)
                    values (claim.id, claim.usr, claim.by_session) on conflict do nothing;
                end if;
                get diagnostics written = row_count;
                has_to_last := has_to_last or written > 0;
            exception when insufficient_privilege then
                outcome := 'forbidden';
            end;
            exit when outcome is not null;
        end loop;
        owner := known.owner_id;
        if outcome is null and owner <> claim.usr then
            outcome := 'taken';
        end if;
        if outcome is not null then
            return next;
            continue;
        end if;

        if known.gone or known.owner_by_session is null
            or (known.owner_by_session and not claim.by_session) then
            begin
                update relay.streams as s
                set owner_by_session = coalesce(s.owner_by_session, true) and claim.by_session
                where s.stream_id = claim.id and s.owner_id = claim.usr;
                has_to_last := true;
                if known.gone then
                    present := present || claim.usr;
                end if;
            exception when insufficient_privilege or read_only_sql_transaction then
                null; -- an owner may produce a stream where this cannot be written
            end;
        end if;

        loop
            select l.* into held from relay.live_streams as l
            where l.stream_id = claim.id for update;
            -- What another owner left behind is replaced; nothing of it goes on.
            if held.owner_id = claim.usr then
                -- Only a clock that was set back makes `accepted_at` lie in the future.
                if (held.node_id = the_node and held.connection > claim.conn)
                    or (held.node_id <> the_node
                        and held.accepted_at > came_at and held.accepted_at <= clock_timestamp())
                then
                    outcome := 'superseded';
                    exit;
                end if;
                epoch := held.epoch;
                if held.node_id = the_node then
                    outcome := 'kept';
                    term := held.term;
                else
                    outcome := 'moved';
                    term := relay.next_epoch();
                    node_before := held.node_id;
                end if;
            else
                if claim.most <= (
                    select count(*) from relay.live_streams as l
                    where l.owner_id = claim.usr and l.stream_id <> claim.id
                        and l.stream_id is distinct from claim.replaced
                ) then
                    outcome := 'too_many';
                    exit;
                end if;
                outcome := 'new';
                epoch := relay.next_epoch();
                term := epoch;
            end if;
            if held.stream_id is null then
                insert into relay.live_streams (
                    stream_id, node_id, term, accepted_at, connection, owner_id, epoch, status,
                    metadata
                ) values (
                    claim.id, the_node, claim_streams.term, came_at, claim.conn, claim.usr,
                    claim_streams.epoch, 'online', claim.metadata
                ) on conflict do nothing;
                exit when found; -- else another transaction was faster, and now there is a row
            else
                update relay.live_streams as l
                set node_id = the_node, term = claim_streams.term, accepted_at = came_at,
                    connection = claim.conn, owner_id = claim.usr, epoch = claim_streams.epoch,
                    status = case outcome when 'new' then 'online' else l.status end,
                    metadata = claim.metadata
                where l.stream_id = claim.id;
                exit;
            end if;
        end loop;
        if outcome in ('superseded', 'too_many') then
            term := 0;
            epoch := 0;
        elsif cardinality(changed) <= 50 and (
            outcome <> 'kept' or held.metadata::text is distinct from claim.metadata::text
        ) then
            changed := changed || claim.id;
        end if;
        return next;
    end loop;

    if cardinality(present) > 0 then
        begin
            for claim in select distinct p.usr collate "C" as usr from unnest(present) as p (usr)
                order by 1
            loop
                delete from relay.deleted_owners as d where d.user_id = claim.usr;
            end loop;
        exception when insufficient_privilege or read_only_sql_transaction then
            null;
        end;
    end if;
    perform relay.notify_of_streams(changed);
    -- The server holds a lock of all that notify until the commit has ended: it should not wait for
    -- the disk. Only the owner of a stream has to outlast a crash.
    if not has_to_last then
        perform set_config('synchronous_commit', 'off', true);
    end if;
end
$$;
