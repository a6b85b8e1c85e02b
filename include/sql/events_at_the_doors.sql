-- Raw events as events of behaviour: opened and clicked (terms.BehaviourKind), by person and edition. A view in the browser
-- is an opening. Mail proxies and link checkers are machines.
--
-- Tables: raw (raw_events.sql), sends (send_id, campaign, edition)
SELECT raw.contact_id, sends.campaign, sends.edition,
       CASE raw.kind WHEN 'click' THEN 'clicked' ELSE 'opened' END AS kind,
       CAST(epoch_ms(CAST(round(raw.t * 1000) AS BIGINT)) AS TIMESTAMP_MS) AS happened_at,
       coalesce(raw.agent IN ('proxy', 'bot'), false) AS machine
FROM raw JOIN sends ON sends.send_id = raw.send_id
WHERE raw.kind IN ('open', 'view', 'click') AND raw.contact_id > 0 AND raw.t IS NOT NULL
