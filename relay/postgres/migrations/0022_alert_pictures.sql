-- What is kept with an alert: the picture of that moment, and a clip. The files are elsewhere. A row
-- outlives its alert, until its files have been removed.
create table relay.alert_pictures (
    alert_id bigint primary key,
    owner_id text, -- of the stream, once something is kept; it counts for this user
    -- 'pending' until something is kept, or cannot be; null: none is wanted
    still text check (still in ('pending', 'kept', 'failed')),
    clip text check (clip in ('pending', 'kept', 'failed')),
    still_bytes bigint not null default 0,
    clip_bytes bigint not null default 0,
    place text -- names the folder, or the bucket, that has the files
);
create index alert_pictures_of_an_owner on relay.alert_pictures (owner_id, alert_id);
