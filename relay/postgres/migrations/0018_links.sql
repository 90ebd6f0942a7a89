-- Links to the pictures of one stream, for tools that can send no token.
create table relay.links (
    link_id text primary key, -- names it in lists; it lets nobody in
    link_hash bytea not null unique, -- SHA-256 of the capability
    stream_id text collate "C" not null,
    purpose text not null check (purpose in ('still', 'mjpeg')),
    made_by text not null, -- an id of a user, as text
    by_session boolean not null, -- whether the maker is a row of Better Auth's user table
    readers integer not null check (readers between 1 and 100),
    made_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    check (expires_at <= made_at + interval '24 hours')
);
create index links_of_a_user on relay.links (made_by, expires_at);

create trigger links_update after update on relay.links
    referencing old table as old_rows new table as new_rows
    for each statement execute function relay.notify_of_changes('link', 'link_id');
create trigger links_delete after delete on relay.links referencing old table as old_rows
    for each statement execute function relay.notify_of_changes('link', 'link_id');
create trigger links_truncate after truncate on relay.links
    for each statement execute function relay.notify_of_changes('link', 'link_id');

-- Those who read MJPEG with a link at this moment, on any relay. A row counts while it is renewed;
-- nothing here outlives the relays, so it is not logged.
create unlogged table relay.link_readers (
    reader_id text primary key,
    link_id text not null,
    seen_at timestamptz not null default clock_timestamp()
);
create index link_readers_of_a_link on relay.link_readers (link_id, seen_at);
