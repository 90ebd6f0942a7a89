-- Signs the links to stills and clips that go with alerts to other programs. Another key ends them all.
create table relay.picture_key (
    is_only boolean primary key default true check (is_only),
    key bytea not null
);
insert into relay.picture_key (key)
values (sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));
