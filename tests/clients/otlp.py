"""The OpenTelemetry SDK with its OTLP/HTTP exporter (protobuf) behind a batching processor."""

import logging
import time

from acknowledged import ADDRESS, acknowledged, done
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource


class Exporter(OTLPLogExporter):
    def export(self, batch):
        result = super().export(batch)
        if result.name == "SUCCESS":
            for item in batch:
                acknowledged(item.log_record.body)
        return result


provider = LoggerProvider(resource=Resource.create({"service.name": "otlp", "host.name": "n1"}))
exporter = Exporter(endpoint=f"http://{ADDRESS}/v1/logs", timeout=5)
provider.add_log_record_processor(BatchLogRecordProcessor(exporter, schedule_delay_millis=20, max_export_batch_size=10))
logger = logging.getLogger("shop")
logger.setLevel(logging.INFO)
logger.propagate = False
logger.addHandler(LoggingHandler(logger_provider=provider))
number = 0
while not done():
    logger.warning(f"record-{number}", extra={"number": number})
    number += 1
    time.sleep(0.003)
provider.shutdown()
