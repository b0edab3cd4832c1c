import ch.qos.logback.classic.LoggerContext;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Logback with its appender for Loki: logback.xml. */
public final class Logback {
    public static void main(String[] arguments) throws InterruptedException {
        Logger logger = LoggerFactory.getLogger("shop.orders");
        Messages.each(logger::warn);
        ((LoggerContext) LoggerFactory.getILoggerFactory()).stop();
    }
}
