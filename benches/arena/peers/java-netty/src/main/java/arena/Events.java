package arena;

import static io.netty.handler.codec.http.HttpHeaderNames.CONTENT_LENGTH;
import static io.netty.handler.codec.http.HttpHeaderNames.CONTENT_TYPE;
import static io.netty.handler.codec.http.HttpHeaderValues.APPLICATION_JSON;
import static io.netty.handler.codec.http.HttpVersion.HTTP_1_1;

import io.netty.buffer.ByteBuf;
import io.netty.buffer.ByteBufInputStream;
import io.netty.buffer.Unpooled;
import io.netty.channel.ChannelFutureListener;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.SimpleChannelInboundHandler;
import io.netty.handler.codec.http.DefaultFullHttpResponse;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.FullHttpResponse;
import io.netty.handler.codec.http.HttpResponseStatus;
import java.nio.charset.StandardCharsets;

/** The routes of the challenge. Responses are flushed together once everything that arrived is handled. */
final class Events extends SimpleChannelInboundHandler<FullHttpRequest> {
    private final Tally tally;

    Events(Tally tally) {
        this.tally = tally;
    }

    @Override
    protected void channelRead0(ChannelHandlerContext context, FullHttpRequest request) {
        if (request.decoderResult().isFailure()) {
            context.writeAndFlush(response(HttpResponseStatus.BAD_REQUEST, null))
                .addListener(ChannelFutureListener.CLOSE);
            return;
        }
        context.write(switch (request.method() + " " + request.uri()) {
            case "POST /event" -> response(count(request.content())
                ? HttpResponseStatus.OK : HttpResponseStatus.BAD_REQUEST, null);
            case "GET /stats" -> response(HttpResponseStatus.OK, Json.write(tally.stats()));
            case "GET /health" -> response(HttpResponseStatus.OK, Json.HEALTHY);
            case "POST /reset" -> {
                tally.reset();
                yield response(HttpResponseStatus.OK, Json.RESET);
            }
            default -> response(HttpResponseStatus.NOT_FOUND, null);
        });
    }

    @Override
    public void channelReadComplete(ChannelHandlerContext context) {
        context.flush();
    }

    @Override
    public void exceptionCaught(ChannelHandlerContext context, Throwable cause) {
        context.close();
    }

    /** Returns false for a body to refuse. */
    private boolean count(ByteBuf body) {
        Event event = Json.event(new ByteBufInputStream(body));
        if (event == null) {
            return false;
        }
        tally.add(event.userId(), event.value());
        return true;
    }

    private static FullHttpResponse response(HttpResponseStatus status, String json) {
        ByteBuf body = json == null
            ? Unpooled.EMPTY_BUFFER : Unpooled.copiedBuffer(json, StandardCharsets.UTF_8);
        FullHttpResponse response = new DefaultFullHttpResponse(HTTP_1_1, status, body);
        response.headers().setInt(CONTENT_LENGTH, body.readableBytes());
        if (json != null) {
            response.headers().set(CONTENT_TYPE, APPLICATION_JSON);
        }
        return response;
    }
}
