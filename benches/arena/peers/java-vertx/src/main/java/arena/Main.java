package arena;

import io.vertx.core.DeploymentOptions;
import io.vertx.core.Future;
import io.vertx.core.Vertx;
import io.vertx.core.VertxOptions;
import io.vertx.core.VerticleBase;
import io.vertx.core.http.HttpHeaders;
import io.vertx.core.http.HttpServerOptions;
import io.vertx.ext.web.Router;
import io.vertx.ext.web.RoutingContext;
import java.util.concurrent.TimeUnit;

/**
 * Vert.x 5 as the published entry uses it: the router without its body handler, events decoded on the
 * worker pool so that they cannot block a loop, and counted on the loop of their connection.
 */
public final class Main extends VerticleBase {
    private static final int BACKLOG = 4096;
    private static final int IDLE_TIMEOUT_S = 75;
    private static final long CLOSE_MAX_S = 1;

    private final int port;
    private final Tally tally;

    private Main(int port, Tally tally) {
        this.port = port;
        this.tally = tally;
    }

    public static void main(String[] arguments) {
        if (arguments.length != 2) {
            System.err.println("usage: java-vertx PORT THREADS");
            System.exit(2);
        }
        int port = Integer.parseInt(arguments[0]);
        int loops = Integer.parseInt(arguments[1]);
        Tally tally = new Tally();
        Vertx vertx = Vertx.vertx(new VertxOptions().setEventLoopPoolSize(loops));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(vertx)));
        vertx.deployVerticle(() -> new Main(port, tally), new DeploymentOptions().setInstances(loops))
            .onFailure(failure -> {
                System.err.println("java-vertx: " + failure.getMessage());
                System.exit(1);
            });
    }

    private static void close(Vertx vertx) {
        try {
            vertx.close().await(CLOSE_MAX_S, TimeUnit.SECONDS);
        } catch (Exception failure) {
            System.err.println("java-vertx: " + failure);
        }
    }

    @Override
    public Future<?> start() {
        Router router = Router.router(vertx);
        router.post("/event").handler(this::receive);
        router.get("/stats").handler(request -> respond(request, Json.write(tally.stats())));
        router.get("/health").handler(request -> respond(request, Json.HEALTHY));
        router.post("/reset").handler(request -> {
            tally.reset();
            respond(request, Json.RESET);
        });
        HttpServerOptions options = new HttpServerOptions()
            .setHost("127.0.0.1")
            .setPort(port)
            .setAcceptBacklog(BACKLOG)
            .setIdleTimeout(IDLE_TIMEOUT_S);
        return vertx.createHttpServer(options).requestHandler(router).listen();
    }

    private void receive(RoutingContext request) {
        boolean inOrder = false;
        request.request().body()
            .compose(body -> vertx.executeBlocking(() -> Json.event(body.getBytes()), inOrder))
            .onSuccess(event -> {
                if (event != null) {
                    tally.add(event.userId(), event.value());
                }
                request.response().setStatusCode(event == null ? 400 : 200).end();
            })
            .onFailure(request::fail);
    }

    private static void respond(RoutingContext request, String json) {
        request.response().putHeader(HttpHeaders.CONTENT_TYPE, "application/json").end(json);
    }
}
