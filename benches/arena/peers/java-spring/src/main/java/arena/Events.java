package arena;

import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.springframework.http.ResponseEntity;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RestController;

/** The routes of the challenge; Spring itself refuses what is not JSON. */
@RestController
public class Events {
    private static final int USER_ID_BYTES_MAX = 256;

    /** A missing member is null. */
    public record Event(String userId, Double value) {
        boolean isWellFormed() {
            return userId != null && !userId.isEmpty() && value != null && Double.isFinite(value)
                && userId.getBytes(StandardCharsets.UTF_8).length <= USER_ID_BYTES_MAX;
        }
    }

    private final Tally tally = new Tally();

    @PostMapping("/event")
    public ResponseEntity<Void> event(@RequestBody Event event) {
        if (!event.isWellFormed()) {
            return ResponseEntity.badRequest().build();
        }
        tally.add(event.userId(), event.value());
        return ResponseEntity.ok().build();
    }

    @GetMapping("/stats")
    public Tally.Stats stats() {
        return tally.stats();
    }

    @GetMapping("/health")
    public Map<String, String> health() {
        return Map.of("status", "healthy");
    }

    @PostMapping("/reset")
    public Map<String, String> reset() {
        tally.reset();
        return Map.of("status", "reset");
    }
}
