package arena;

import static io.netty.handler.codec.http.HttpHeaderNames.CONTENT_LENGTH;
import static io.netty.handler.codec.http.HttpHeaderNames.CONTENT_TYPE;
import static io.netty.handler.codec.http.HttpHeaderValues.APPLICATION_JSON;
import static io.netty.handler.codec.http.HttpVersion.HTTP_1_1;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.MapperFeature;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.cfg.CoercionAction;
import com.fasterxml.jackson.databind.cfg.CoercionInputShape;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.type.LogicalType;
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
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;

/** The routes of the challenge. Responses are flushed together once everything that arrived is handled. */
final class Events extends SimpleChannelInboundHandler<FullHttpRequest> {
    private static final int USER_ID_BYTES_MAX = 256;

    /** Strict: no number from a string, no string from a number, nothing after the object. */
    private static final JsonMapper JSON = JsonMapper.builder()
        .disable(MapperFeature.ALLOW_COERCION_OF_SCALARS)
        .disable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES)
        .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
        .withCoercionConfig(LogicalType.Textual, config -> config
            .setCoercion(CoercionInputShape.Integer, CoercionAction.Fail)
            .setCoercion(CoercionInputShape.Float, CoercionAction.Fail)
            .setCoercion(CoercionInputShape.Boolean, CoercionAction.Fail))
        .build();
    private static final ObjectReader EVENTS = JSON.readerFor(Event.class);

    /** A missing member is null. */
    record Event(String userId, Double value) {
        boolean isWellFormed() {
            return userId != null && !userId.isEmpty() && value != null && Double.isFinite(value)
                && userId.getBytes(StandardCharsets.UTF_8).length <= USER_ID_BYTES_MAX;
        }
    }

    private final Tally tally;

    Events(Tally tally) {
        this.tally = tally;
    }

    @Override
    protected void channelRead0(ChannelHandlerContext context, FullHttpRequest request)
            throws JsonProcessingException {
        if (request.decoderResult().isFailure()) {
            context.writeAndFlush(answer(HttpResponseStatus.BAD_REQUEST, null))
                .addListener(ChannelFutureListener.CLOSE);
            return;
        }
        context.write(switch (request.method() + " " + request.uri()) {
            case "POST /event" -> answer(count(request.content())
                ? HttpResponseStatus.OK : HttpResponseStatus.BAD_REQUEST, null);
            case "GET /stats" -> answer(HttpResponseStatus.OK, JSON.writeValueAsString(tally.stats()));
            case "GET /health" -> answer(HttpResponseStatus.OK, "{\"status\":\"healthy\"}");
            case "POST /reset" -> {
                tally.reset();
                yield answer(HttpResponseStatus.OK, "{\"status\":\"reset\"}");
            }
            default -> answer(HttpResponseStatus.NOT_FOUND, null);
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
        Event event;
        try (InputStream bytes = new ByteBufInputStream(body)) {
            event = EVENTS.readValue(bytes);
        } catch (IOException malformed) {
            return false;
        }
        // `null` is JSON but not an event, and neither is an empty body.
        if (event == null || !event.isWellFormed()) {
            return false;
        }
        tally.add(event.userId(), event.value());
        return true;
    }

    private static FullHttpResponse answer(HttpResponseStatus status, String json) {
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
