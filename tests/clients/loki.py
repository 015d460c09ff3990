"""A handler of Python's logging that pushes each record to Loki."""

import logging
import time

import logging_loki
from acknowledged import ADDRESS, acknowledged, done


class Handler(logging_loki.LokiHandler):
    def emit(self, record):
        self.failed = False
        super().emit(record)
        if not self.failed:
            acknowledged(record.getMessage())

    def handleError(self, record):
        self.failed = True
        self.emitter.close()  # as the base handler does: the next record gets a new session


handler = Handler(url=f"http://{ADDRESS}/loki/api/v1/push", tags={"app": "loki", "host": "n1"}, version="1")
logger = logging.getLogger("shop")
logger.setLevel(logging.INFO)
logger.propagate = False
logger.addHandler(handler)
number = 0
while not done():
    logger.warning(f"record-{number}")
    number += 1
    time.sleep(0.003)
