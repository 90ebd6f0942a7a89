-- Whether a service may tell of sessions that have ended.
alter table relay.service_tokens add column revoke boolean not null default false;
