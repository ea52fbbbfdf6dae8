// HTTP/1.1 requests (RFC 9112) with a Content-Length, from bytes that may end anywhere. Anything that
// is not understood is refused, transfer codings included.
#pragma once

#include <charconv>
#include <optional>
#include <string_view>

namespace arena {

struct Request {
    std::string_view method;
    std::string_view target;
    std::string_view body;
    bool keep_alive = true;
};

enum class Outcome { complete, needs_more, refused };

class RequestParser {
public:
    static constexpr size_t head_bytes_max = 8192;
    static constexpr size_t body_bytes_max = 16384;

    // On `complete`, `request` points into `bytes` and `length` is where the next one starts.
    static Outcome parse(std::string_view bytes, Request& request, size_t& length) {
        const size_t head_end = bytes.find("\r\n\r\n");
        if (head_end == std::string_view::npos)
            return bytes.size() > head_bytes_max ? Outcome::refused : Outcome::needs_more;
        if (head_end > head_bytes_max) return Outcome::refused;
        request = Request{};
        std::optional<size_t> content_length;
        if (!head(bytes.substr(0, head_end), request, content_length)) return Outcome::refused;
        const size_t body_length = content_length.value_or(0);
        if (body_length > body_bytes_max) return Outcome::refused;
        const size_t body_start = head_end + 4;
        if (bytes.size() < body_start + body_length) return Outcome::needs_more;
        request.body = bytes.substr(body_start, body_length);
        length = body_start + body_length;
        return Outcome::complete;
    }

private:
    static bool head(std::string_view text, Request& request, std::optional<size_t>& length) {
        std::string_view line = take_line(text);
        if (!request_line(line, request)) return false;
        while (!text.empty()) {
            line = take_line(text);
            const size_t colon = line.find(':');
            if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) return false;
            const std::string_view name = line.substr(0, colon);
            const std::string_view value = trimmed(line.substr(colon + 1));
            for (const char byte : value)
                if (is_control(byte)) return false;
            if (equals(name, "content-length")) {
                size_t number;
                const char* end = value.data() + value.size();
                const auto [stop, error] = std::from_chars(value.data(), end, number);
                if (error != std::errc{} || stop != end || length) return false;
                length = number;
            } else if (equals(name, "transfer-encoding")) {
                return false;
            } else if (equals(name, "connection")) {
                if (equals(value, "close")) request.keep_alive = false;
                if (equals(value, "keep-alive")) request.keep_alive = true;
            }
        }
        return true;
    }

    static bool request_line(std::string_view line, Request& request) {
        const size_t first = line.find(' ');
        const size_t second = line.rfind(' ');
        if (first == std::string_view::npos || second == first) return false;
        request.method = line.substr(0, first);
        request.target = line.substr(first + 1, second - first - 1);
        const std::string_view version = line.substr(second + 1);
        request.keep_alive = version == "HTTP/1.1";
        if (!request.keep_alive && version != "HTTP/1.0") return false;
        for (const char byte : request.target)
            if (byte == ' ' || is_control(byte)) return false;
        return is_token(request.method) && request.target.starts_with('/');
    }

    static std::string_view take_line(std::string_view& text) {
        const size_t end = text.find("\r\n");
        const std::string_view line = text.substr(0, end);
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 2);
        return line;
    }

    static bool is_token(std::string_view text) {
        for (const char byte : text) {
            const bool letter = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
            const bool digit = byte >= '0' && byte <= '9';
            const std::string_view others = "-!#$%&'*+.^_`|~";
            if (!letter && !digit && others.find(byte) == std::string_view::npos) return false;
        }
        return !text.empty();
    }

    static bool is_control(char byte) {
        return (static_cast<unsigned char>(byte) < 0x20 && byte != '\t') || byte == 0x7f;
    }

    static std::string_view trimmed(std::string_view text) {
        const size_t start = text.find_first_not_of(" \t");
        if (start == std::string_view::npos) return text.substr(text.size());
        return text.substr(start, text.find_last_not_of(" \t") + 1 - start);
    }

    // `right` must be in lower case.
    static bool equals(std::string_view left, std::string_view right) {
        if (left.size() != right.size()) return false;
        for (size_t index = 0; index < left.size(); ++index) {
            const char byte = left[index];
            const bool upper = byte >= 'A' && byte <= 'Z';
            if ((upper ? byte + ('a' - 'A') : byte) != right[index]) return false;
        }
        return true;
    }
};

}  // namespace arena
