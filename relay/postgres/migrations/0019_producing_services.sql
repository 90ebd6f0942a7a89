-- A service may produce streams in the name of a user, who owns them.
alter table relay.service_tokens
    add column produce text[] not null default '{}', -- stream ids, prefixes with a '*' behind, or '*'
    add column user_id text, -- in whose name it produces
    -- Whether that user was in Better Auth's table: then the token ends with the user.
    add column user_is_stored boolean not null default false,
    add constraint produces_for_a_user check (produce = '{}' or user_id is not null);
