create table relay.streams (
    stream_id text primary key,
    owner_id text not null, -- an id of Better Auth's user table, as text
    created_at timestamptz not null default now()
);

create sequence relay.alert_ids as bigint;

create table relay.alerts (
    alert_id bigint primary key, -- from relay.alert_ids, taken under a lock held to the commit
    stream_id text not null references relay.streams,
    sender text not null, -- 'user:ID' or 'service:NAME'
    severity text not null,
    message text not null,
    timestamp bigint not null, -- the sender's clock, ms since the Unix epoch
    metadata json, -- not jsonb: kept as it came, and it may hold \u0000
    alert_key text,
    accepted_at timestamptz not null default now(),
    unique (stream_id, sender, alert_key)
);

create table relay.service_tokens (
    token_hash bytea primary key, -- SHA-256
    name text not null unique,
    consume text[] not null, -- stream ids, or '*'
    alerts boolean not null,
    operate boolean not null,
    created_at timestamptz not null default now()
);
