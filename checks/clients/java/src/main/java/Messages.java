import java.util.function.Consumer;

/** The messages of a run, at its pace, for a program that logs them. */
final class Messages {
    private Messages() {}

    static void each(Consumer<String> log) throws InterruptedException {
        String run = System.getenv("RUN");
        int count = Integer.parseInt(System.getenv("MESSAGES"));
        double perSecond = Double.parseDouble(System.getenv("PER_SECOND"));
        long began = System.nanoTime();
        for (int number = 0; number < count; number++) {
            long early = began + (long) (number * 1e9 / perSecond) - System.nanoTime();
            if (early > 20_000_000) {
                Thread.sleep(early / 1_000_000);
            }
            log.accept(String.format("%s-%06d order", run, number));
        }
    }
}
