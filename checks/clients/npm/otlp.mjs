// OpenTelemetry's SDK for JavaScript; the variables OTEL_… set it. The argument is the form: http is JSON.
import { SeverityNumber } from "@opentelemetry/api-logs";
import { BatchLogRecordProcessor, LoggerProvider } from "@opentelemetry/sdk-logs";
import { eachMessage } from "./messages.mjs";

const { OTLPLogExporter } = await import(`@opentelemetry/exporter-logs-otlp-${process.argv[2]}`);
const provider = new LoggerProvider({ processors: [new BatchLogRecordProcessor({ exporter: new OTLPLogExporter() })] });
const logger = provider.getLogger("shop.orders");
await eachMessage((body) => logger.emit({ severityNumber: SeverityNumber.WARN, body, timestamp: Date.now() }));
await provider.forceFlush();
await provider.shutdown();
