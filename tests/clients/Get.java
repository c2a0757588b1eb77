import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** Java's HttpClient: proxy and trust store from JAVA_TOOL_OPTIONS. */
public class Get {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (String path : new String[] {"/repos/o/r", "/repos/o/r", "/repos/o/none"}) {
            var request = HttpRequest.newBuilder(URI.create("https://api.github.com" + path)).header("Authorization", "Bearer ghp_dummy").build();
            var reply = client.send(request, BodyHandlers.ofString());
            System.out.println(path + " " + reply.statusCode() + " " + reply.version() + " " + reply.body().contains("\"o/r\""));
        }
    }
}
