-- Why each person of `changed` is not in the other snapshot, as far as its files tell.
--
-- Tables:    changed   snapshot_changed.sql
--            barred    whom the other snapshot left out: added, person, reasons (bitmask); a row a file or several
-- Variables: newest    contact id up to which the other one looked: struct of added and removed
--            blanked   whether rows of the one that holds the person may be blanked: struct likewise
--
-- A blanked row has lost its contact id: the person was erased since, and nothing else can be told of them.
CREATE TEMP TABLE explained AS
SELECT changed.*,
       bars.reasons,
       CASE
           WHEN bars.reasons IS NOT NULL THEN 'barred'
           WHEN contact_id = 0 AND if(changed.added, getvariable('blanked').added, getvariable('blanked').removed)
               THEN 'erased'
           WHEN contact_id > if(changed.added, getvariable('newest').added, getvariable('newest').removed)
               THEN 'no-contact-yet'
           ELSE 'no-match'
       END AS absence
FROM changed
LEFT JOIN (SELECT added, person, bit_or(reasons) AS reasons FROM barred GROUP BY ALL) AS bars
    ON bars.person = changed.person AND bars.added = changed.added
