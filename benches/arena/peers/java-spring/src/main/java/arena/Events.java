package arena;

import java.util.Map;
import org.springframework.http.ResponseEntity;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RestController;

/** The routes of the challenge; Spring itself refuses what is not JSON. */
@RestController
public class Events {
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
