-- The streams of which the broker of an MQTT target retains messages, so that these can be removed
-- when the stream is forgotten.
create table relay.mqtt_streams (
    target_id text not null references relay.alert_targets on delete cascade,
    stream_id text not null collate "C",
    primary key (target_id, stream_id)
);
create index mqtt_targets_of_a_stream on relay.mqtt_streams (stream_id);
