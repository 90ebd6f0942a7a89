create table relay.webhooks (
    webhook_id text primary key,
    owner_id text, -- of all streams of this user, or
    stream_id text, -- of this one
    url text not null,
    secret text not null, -- as it was shown: it signs, so a hash will not do
    created_at timestamptz not null default now(),
    position bigint not null, -- the last alert that it has, or that came before it
    delivered bigint not null default 0,
    failures integer not null default 0, -- since the last success
    failing_since timestamptz,
    try_again_at timestamptz,
    last_error text,
    given_up_at timestamptz,
    lease uuid, -- of the relay that is at it
    leased_until timestamptz,
    check ((owner_id is null) <> (stream_id is null))
);
