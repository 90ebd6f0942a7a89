create table relay.audit (
    audit_id bigint generated always as identity primary key, -- in the order of happening, for one relay
    event_id uuid not null unique, -- a batch whose commit went unheard is written again, but not twice
    at timestamptz not null, -- the clock of the relay
    what text not null,
    outcome text not null,
    reason text not null,
    address text not null,
    user_id text,
    service text,
    session_id text,
    stream_id text,
    connection bigint -- its number in the log of the relay
);

create index audit_by_time on relay.audit (at);
create index audit_of_a_user on relay.audit (user_id, audit_id);
