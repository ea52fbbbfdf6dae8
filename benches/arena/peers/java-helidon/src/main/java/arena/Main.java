package arena;

import io.helidon.common.media.type.MediaTypes;
import io.helidon.http.Status;
import io.helidon.webserver.WebServer;
import io.helidon.webserver.http.ServerRequest;
import io.helidon.webserver.http.ServerResponse;

/** Helidon 4 as the published entry uses it: blocking handlers, one virtual thread per connection. */
public final class Main {
    private static final int BACKLOG = 4096;

    private Main() {}

    public static void main(String[] arguments) {
        if (arguments.length != 1) {
            System.err.println("usage: java-helidon PORT");
            System.exit(2);
        }
        Tally tally = new Tally();
        WebServer.builder()
            .host("127.0.0.1")
            .port(Integer.parseInt(arguments[0]))
            .backlog(BACKLOG)
            .routing(routes -> routes
                .post("/event", (request, response) -> response
                    .status(count(tally, request) ? Status.OK_200 : Status.BAD_REQUEST_400)
                    .send())
                .get("/stats", (request, response) -> respond(response, Json.write(tally.stats())))
                .get("/health", (request, response) -> respond(response, Json.HEALTHY))
                .post("/reset", (request, response) -> {
                    tally.reset();
                    respond(response, Json.RESET);
                }))
            .build()
            .start();
    }

    /** Returns false for a body to refuse. */
    private static boolean count(Tally tally, ServerRequest request) {
        Event event = Json.event(request.content().as(byte[].class));
        if (event == null) {
            return false;
        }
        tally.add(event.userId(), event.value());
        return true;
    }

    private static void respond(ServerResponse response, String json) {
        response.headers().contentType(MediaTypes.APPLICATION_JSON);
        response.send(json);
    }
}
