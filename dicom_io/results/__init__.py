"""Results as DICOM: structured reports, refusals and result cards, always preliminary.

Owns what leaves the house as an object. Knows nothing of queues, models' weights or peers; every
function here turns records into bytes or bytes into something people read.
"""
