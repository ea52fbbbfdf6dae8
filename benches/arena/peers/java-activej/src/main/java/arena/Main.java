package arena;

import static io.activej.http.HttpHeaderValue.ofContentType;
import static io.activej.http.HttpHeaders.CONTENT_TYPE;
import static io.activej.http.HttpMethod.GET;
import static io.activej.http.HttpMethod.POST;

import io.activej.http.AsyncServlet;
import io.activej.http.ContentType;
import io.activej.http.HttpResponse;
import io.activej.http.MediaTypes;
import io.activej.http.RoutingServlet;
import io.activej.inject.annotation.Provides;
import io.activej.launchers.http.HttpServerLauncher;
import java.nio.charset.StandardCharsets;

/** ActiveJ 5 as the published entry uses it: its launcher, with one event loop on one thread. */
public final class Main extends HttpServerLauncher {
    private final Tally tally = new Tally();

    /** Takes its settings from the system properties that start with {@code config}. */
    public static void main(String[] arguments) throws Exception {
        new Main().launch(arguments);
    }

    @Provides
    AsyncServlet servlet() {
        return RoutingServlet.create()
            .map(POST, "/event", request -> request.loadBody().map(body -> count(body.getArray())))
            .map(GET, "/stats", request -> json(Json.write(tally.stats())))
            .map(GET, "/health", request -> json(Json.HEALTHY))
            .map(POST, "/reset", request -> {
                tally.reset();
                return json(Json.RESET);
            });
    }

    private HttpResponse count(byte[] body) {
        Event event = Json.event(body);
        if (event == null) {
            return HttpResponse.ofCode(400);
        }
        tally.add(event.userId(), event.value());
        return HttpResponse.ok200();
    }

    private static HttpResponse json(String body) {
        return HttpResponse.ok200()
            .withHeader(CONTENT_TYPE, ofContentType(ContentType.of(MediaTypes.JSON)))
            .withBody(body.getBytes(StandardCharsets.UTF_8));
    }
}
