import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** Java's HttpClient: threads that share its pool of connections. Prints how many events were acknowledged. */
class Client {
    public static void main(String[] texts) throws Exception {
        var url = URI.create(texts[0]);
        int events = Integer.parseInt(texts[1]);
        int connections = Integer.parseInt(texts[2]);
        // Each request asks for HTTP/2 with an Upgrade. This is the client's default, and a server may ignore it.
        var client = HttpClient.newHttpClient();
        var acknowledged = new AtomicInteger();
        var threads = Executors.newFixedThreadPool(connections);
        for (int event = 0; event < events; event++) {
            int index = event;
            threads.submit(() -> {
                var body = "{\"userId\":\"user_%d\",\"value\":%d.5}".formatted(index % 75000, index % 1000);
                var request = HttpRequest.newBuilder(url).POST(HttpRequest.BodyPublishers.ofString(body)).build();
                int status = client.send(request, HttpResponse.BodyHandlers.discarding()).statusCode();
                if (status == 200 || status == 201) acknowledged.incrementAndGet();
                return null;
            });
        }
        threads.shutdown();
        threads.awaitTermination(2, TimeUnit.MINUTES);
        System.out.println(acknowledged.get());
    }
}
