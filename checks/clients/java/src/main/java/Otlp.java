import io.opentelemetry.api.logs.Logger;
import io.opentelemetry.api.logs.Severity;
import io.opentelemetry.sdk.OpenTelemetrySdk;
import io.opentelemetry.sdk.autoconfigure.AutoConfiguredOpenTelemetrySdk;
import java.util.concurrent.TimeUnit;

/** OpenTelemetry's SDK for Java; the variables OTEL_… set it. */
public final class Otlp {
    public static void main(String[] arguments) throws InterruptedException {
        OpenTelemetrySdk sdk = AutoConfiguredOpenTelemetrySdk.initialize().getOpenTelemetrySdk();
        Logger logger = sdk.getSdkLoggerProvider().get("shop.orders");
        Messages.each(message -> logger.logRecordBuilder().setSeverity(Severity.WARN).setBody(message).emit());
        sdk.getSdkLoggerProvider().forceFlush().join(100, TimeUnit.SECONDS);
        sdk.shutdown().join(10, TimeUnit.SECONDS);
    }
}
