create index alerts_of_a_stream on relay.alerts (stream_id, alert_id);
create index streams_of_an_owner on relay.streams (owner_id);
