"""The Elasticsearch client's bulk helper."""

import itertools
import time

from acknowledged import ADDRESS, acknowledged, done
from elasticsearch import Elasticsearch, helpers

client = Elasticsearch(f"http://{ADDRESS}", request_timeout=5, max_retries=0)
numbers = itertools.count()
while not done():
    messages = [f"record-{next(numbers)}" for _ in range(10)]
    actions = [{"_op_type": "create", "_index": "elastic", "level": "warn", "message": text} for text in messages]
    try:
        results = helpers.streaming_bulk(client, actions, raise_on_error=False, raise_on_exception=False)
        for text, (stored, _) in zip(messages, results, strict=True):
            if stored:
                acknowledged(text)
    except Exception:  # no response at all
        time.sleep(0.05)
    time.sleep(0.005)
