package arena;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.MapperFeature;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.cfg.CoercionAction;
import com.fasterxml.jackson.databind.cfg.CoercionInputShape;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.type.LogicalType;
import java.io.IOException;
import java.io.InputStream;

/** JSON for the entries whose framework does not convert bodies by itself. */
final class Json {
    static final String HEALTHY = "{\"status\":\"healthy\"}";
    static final String RESET = "{\"status\":\"reset\"}";

    /** Strict: no number from a string, no string from a number, nothing after the object. */
    private static final JsonMapper MAPPER = JsonMapper.builder()
        .disable(MapperFeature.ALLOW_COERCION_OF_SCALARS)
        .disable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES)
        .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
        .withCoercionConfig(LogicalType.Textual, config -> config
            .setCoercion(CoercionInputShape.Integer, CoercionAction.Fail)
            .setCoercion(CoercionInputShape.Float, CoercionAction.Fail)
            .setCoercion(CoercionInputShape.Boolean, CoercionAction.Fail))
        .build();
    private static final ObjectReader EVENTS = MAPPER.readerFor(Event.class);

    private Json() {}

    /** Returns null for a body to refuse with 400. */
    static Event event(byte[] body) {
        try {
            return wellFormed(EVENTS.readValue(body));
        } catch (IOException malformed) {
            return null;
        }
    }

    /** Returns null for a body to refuse with 400. */
    static Event event(InputStream body) {
        try {
            return wellFormed(EVENTS.readValue(body));
        } catch (IOException malformed) {
            return null;
        }
    }

    /** The body of {@code /stats}. */
    static String write(Tally.Stats stats) {
        try {
            return MAPPER.writeValueAsString(stats);
        } catch (JsonProcessingException impossible) {
            throw new IllegalStateException("four numbers have a JSON form", impossible);
        }
    }

    private static Event wellFormed(Event event) {
        // The body `null` is JSON but not an event.
        return event != null && event.isWellFormed() ? event : null;
    }
}
