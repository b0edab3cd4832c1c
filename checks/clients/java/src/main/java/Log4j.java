import org.apache.logging.log4j.LogManager;
import org.apache.logging.log4j.Logger;

/** Log4j 2 with its Http appender: log4j2.xml. */
public final class Log4j {
    public static void main(String[] arguments) throws InterruptedException {
        Logger logger = LogManager.getLogger("shop.orders");
        Messages.each(logger::warn);
        LogManager.shutdown();
    }
}
