"""The Elasticsearch client's bulk helper."""

import itertools
import time

from elasticsearch import Elasticsearch, helpers
from told import ADDRESS, enough, told

client = Elasticsearch(f"http://{ADDRESS}", request_timeout=5, max_retries=0)
numbers = itertools.count()
while not enough():
    messages = [f"record-{next(numbers)}" for _ in range(10)]
    actions = [{"_op_type": "create", "_index": "elastic", "level": "warn", "message": text} for text in messages]
    try:
        results = helpers.streaming_bulk(client, actions, raise_on_error=False, raise_on_exception=False)
        for text, (stored, _) in zip(messages, results, strict=True):
            if stored:
                told(text)
    except Exception:  # no answer at all
        time.sleep(0.05)
    time.sleep(0.005)
