// The event as JSON (RFC 8259), read strictly and in one pass: anything that is not an event is refused.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

namespace arena {

struct Event {
    std::string user;
    double value = 0;
};

class EventParser {
public:
    static std::optional<Event> parse(std::string_view body) {
        EventParser parser{body};
        Event event;
        if (!parser.object_of_event(event)) return std::nullopt;
        return event;
    }

private:
    static constexpr size_t user_bytes_max = 256;
    // Ignored members may nest, and the parser recurses, so the depth must be bounded.
    static constexpr int depth_max = 64;

    explicit EventParser(std::string_view body) : at_(body.data()), end_(at_ + body.size()) {}

    bool object_of_event(Event& event) {
        bool has_user = false, has_value = false;
        skip_space();
        if (!take('{')) return false;
        std::string key;
        skip_space();
        if (take('}')) return false;
        do {
            if (!member_key(key)) return false;
            if (key == "userId") {
                if (has_user || !string(event.user)) return false;
                has_user = true;
            } else if (key == "value") {
                if (has_value || !number(event.value)) return false;
                has_value = true;
            } else if (!ignored(0)) {
                return false;
            }
            skip_space();
        } while (take(','));
        if (!take('}')) return false;
        skip_space();
        const bool user_fits = !event.user.empty() && event.user.size() <= user_bytes_max;
        return at_ == end_ && has_user && has_value && user_fits;
    }

    bool member_key(std::string& key) {
        skip_space();
        if (!string(key)) return false;
        skip_space();
        if (!take(':')) return false;
        skip_space();
        return true;
    }

    bool ignored(int depth) {
        if (depth == depth_max || at_ == end_) return false;
        std::string text;
        double value;
        switch (*at_) {
        case '"': return string(text);
        case 't': return word("true");
        case 'f': return word("false");
        case 'n': return word("null");
        case '[': return list(depth, '[', ']', false);
        case '{': return list(depth, '{', '}', true);
        default: return number(value);
        }
    }

    bool list(int depth, char opening, char closing, bool keys) {
        if (!take(opening)) return false;
        skip_space();
        if (take(closing)) return true;
        std::string key;
        do {
            skip_space();
            if (keys && !member_key(key)) return false;
            if (!ignored(depth + 1)) return false;
            skip_space();
        } while (take(','));
        return take(closing);
    }

    bool string(std::string& text) {
        text.clear();
        if (!take('"')) return false;
        while (at_ != end_) {
            const auto byte = static_cast<unsigned char>(*at_);
            if (byte == '"') {
                ++at_;
                return true;
            }
            if (byte == '\\') {
                ++at_;
                if (!escape(text)) return false;
            } else if (byte < 0x20) {
                return false;
            } else if (byte < 0x80) {
                text.push_back(*at_++);
            } else if (!multibyte(text)) {
                return false;
            }
        }
        return false;
    }

    // Well-formed sequences only, Unicode 16 table 3-7: no surrogates and no overlong forms.
    bool multibyte(std::string& text) {
        const auto first = static_cast<unsigned char>(*at_);
        const size_t length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
        if (first < 0xc2 || first > 0xf4 || remaining() < length) return false;
        const auto second = static_cast<unsigned char>(at_[1]);
        const unsigned char low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
        const unsigned char high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
        if (second < low || second > high) return false;
        for (size_t index = 2; index < length; ++index)
            if ((static_cast<unsigned char>(at_[index]) & 0xc0) != 0x80) return false;
        text.append(at_, length);
        at_ += length;
        return true;
    }

    bool escape(std::string& text) {
        if (at_ == end_) return false;
        switch (*at_++) {
        case '"': text.push_back('"'); return true;
        case '\\': text.push_back('\\'); return true;
        case '/': text.push_back('/'); return true;
        case 'b': text.push_back('\b'); return true;
        case 'f': text.push_back('\f'); return true;
        case 'n': text.push_back('\n'); return true;
        case 'r': text.push_back('\r'); return true;
        case 't': text.push_back('\t'); return true;
        case 'u': return code_point(text);
        default: return false;
        }
    }

    bool code_point(std::string& text) {
        uint32_t code;
        if (!four_digits(code)) return false;
        if (code >= 0xdc00 && code <= 0xdfff) return false;
        if (code >= 0xd800 && code <= 0xdbff) {
            uint32_t low;
            if (!take('\\') || !take('u') || !four_digits(low)) return false;
            if (low < 0xdc00 || low > 0xdfff) return false;
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        const auto push = [&](uint32_t byte) { text.push_back(static_cast<char>(byte)); };
        if (code < 0x80) {
            push(code);
        } else if (code < 0x800) {
            push(0xc0 | code >> 6);
            push(0x80 | (code & 0x3f));
        } else if (code < 0x10000) {
            push(0xe0 | code >> 12);
            push(0x80 | (code >> 6 & 0x3f));
            push(0x80 | (code & 0x3f));
        } else {
            push(0xf0 | code >> 18);
            push(0x80 | (code >> 12 & 0x3f));
            push(0x80 | (code >> 6 & 0x3f));
            push(0x80 | (code & 0x3f));
        }
        return true;
    }

    bool four_digits(uint32_t& code) {
        if (remaining() < 4) return false;
        const auto [stop, error] = std::from_chars(at_, at_ + 4, code, 16);
        if (error != std::errc{} || stop != at_ + 4) return false;
        at_ += 4;
        return true;
    }

    // from_chars accepts more than JSON does ("01", "1.", "inf"), so the grammar is walked first.
    bool number(double& value) {
        const char* start = at_;
        take('-');
        if (!take('0') && !digits()) return false;
        if (take('.') && !digits()) return false;
        if (take('e') || take('E')) {
            if (!take('+')) take('-');
            if (!digits()) return false;
        }
        if (std::from_chars(start, at_, value).ec == std::errc::result_out_of_range)
            value = std::strtod(std::string(start, at_).c_str(), nullptr);
        return std::isfinite(value);
    }

    bool digits() {
        const char* start = at_;
        while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
        return at_ != start;
    }

    bool word(std::string_view text) {
        if (std::string_view(at_, remaining()).substr(0, text.size()) != text) return false;
        at_ += text.size();
        return true;
    }

    void skip_space() {
        while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
    }

    bool take(char wanted) {
        if (at_ == end_ || *at_ != wanted) return false;
        ++at_;
        return true;
    }

    size_t remaining() const { return static_cast<size_t>(end_ - at_); }

    const char* at_;
    const char* end_;
};

}  // namespace arena
