package arena;

import java.nio.charset.StandardCharsets;

/** What {@code POST /event} receives. A missing member is null. */
public record Event(String userId, Double value) {
    private static final int USER_ID_BYTES_MAX = 256;

    boolean isWellFormed() {
        return userId != null && !userId.isEmpty() && value != null && Double.isFinite(value)
            && userId.getBytes(StandardCharsets.UTF_8).length <= USER_ID_BYTES_MAX;
    }
}
