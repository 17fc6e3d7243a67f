-- The least that `walvault backup --from remote` needs: a user that may stream, and nothing else.
--
--   psql -f backup-role.sql, then \password walvault
--
-- pg_hba.conf, before other lines for these users; the second line is for the names of databases and relations, without
-- which a backup is as good and `restore --before-drop TABLE` has to be told a number:
--
--   hostssl replication walvault <address of the backup's host or pods>/32 scram-sha-256
--   hostssl all         walvault <address of the backup's host or pods>/32 scram-sha-256
-- Two walsenders at most (max_wal_senders): the backup, and with --with-wal the log, which takes a replication slot
-- (max_replication_slots) while the backup runs.
create role walvault with login replication connection limit 8;
comment on role walvault is 'takes base backups over the replication protocol';
