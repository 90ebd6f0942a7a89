-- Each machine numbers its connections: in a cluster, the node tells which is meant.
alter table relay.audit add column node text;
alter table relay.operator_requests add column node text; -- only this one is to end `connection`
