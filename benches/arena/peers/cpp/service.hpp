// The totals, and the response to each request. The totals are separate atomics beside sharded sets
// of users, so /stats is exact only while no event is in flight.
#pragma once

#include "event.hpp"
#include "http.hpp"

#include <array>
#include <atomic>
#include <charconv>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_set>

namespace arena {

class Tally {
public:
    void add(Event event) {
        Shard& shard = shards_[std::hash<std::string>{}(event.user) % shards_.size()];
        {
            const std::lock_guard lock(shard.mutex);
            shard.users.insert(std::move(event.user));
        }
        sum_.fetch_add(event.value, std::memory_order_relaxed);
        requests_.fetch_add(1, std::memory_order_relaxed);
    }

    void reset() {
        for (Shard& shard : shards_) {
            const std::lock_guard lock(shard.mutex);
            shard.users.clear();
        }
        sum_.store(0);
        requests_.store(0);
    }

    std::string stats() {
        size_t users = 0;
        for (Shard& shard : shards_) {
            const std::lock_guard lock(shard.mutex);
            users += shard.users.size();
        }
        const uint64_t requests = requests_.load();
        const double sum = sum_.load();
        const double average = requests == 0 ? 0 : sum / static_cast<double>(requests);
        return "{\"totalRequests\":" + std::to_string(requests) +
               ",\"uniqueUsers\":" + std::to_string(users) + ",\"sum\":" + shortest(sum) +
               ",\"avg\":" + shortest(average) + "}";
    }

private:
    // At least a cache line each, so that neighboring locks do not share one.
    struct alignas(64) Shard {
        std::mutex mutex;
        std::unordered_set<std::string> users;
    };

    static std::string shortest(double number) {
        std::array<char, 32> text;
        const auto [stop, error] = std::to_chars(text.begin(), text.end(), number);
        return std::string(text.begin(), stop);
    }

    std::array<Shard, 64> shards_;
    alignas(64) std::atomic<uint64_t> requests_ = 0;
    std::atomic<double> sum_ = 0;
};

class Service {
public:
    // Appends the response to each whole request and returns how many bytes these were made of: all, once the
    // connection no longer stays open.
    size_t answer_all(std::string_view bytes, bool& keep_alive, std::string& out) {
        size_t done = 0;
        while (keep_alive && done < bytes.size()) {
            Request request;
            size_t length = 0;
            switch (RequestParser::parse(bytes.substr(done), request, length)) {
            case Outcome::complete:
                keep_alive = request.keep_alive;
                answer(request, request.keep_alive, out);
                done += length;
                break;
            case Outcome::needs_more:
                return done;
            case Outcome::refused:
                keep_alive = false;
                refuse(out, false);
                return bytes.size();
            }
        }
        return keep_alive ? done : bytes.size();
    }

    // Appends the response; `keep_alive` says whether the connection stays open after it.
    void answer(const Request& request, bool keep_alive, std::string& out) {
        const bool get = request.method == "GET";
        const bool post = request.method == "POST";
        if (request.target == "/event") {
            if (!post) return write(out, "405 Method Not Allowed\r\nAllow: POST", "", keep_alive);
            auto event = EventParser::parse(request.body);
            if (!event) return refuse(out, keep_alive);
            tally_.add(std::move(*event));
            write(out, "200 OK", "", keep_alive);
        } else if (request.target == "/stats") {
            if (!get) return write(out, "405 Method Not Allowed\r\nAllow: GET", "", keep_alive);
            write(out, "200 OK", tally_.stats(), keep_alive);
        } else if (request.target == "/health") {
            if (!get) return write(out, "405 Method Not Allowed\r\nAllow: GET", "", keep_alive);
            write(out, "200 OK", R"({"status":"healthy"})", keep_alive);
        } else if (request.target == "/reset") {
            if (!post) return write(out, "405 Method Not Allowed\r\nAllow: POST", "", keep_alive);
            tally_.reset();
            write(out, "200 OK", R"({"status":"reset"})", keep_alive);
        } else {
            write(out, "404 Not Found", R"({"error":"ask for /stats or /health"})", keep_alive);
        }
    }

    static void refuse(std::string& out, bool keep_alive) {
        write(out, "400 Bad Request", R"({"error":"send a well-formed event"})", keep_alive);
    }

private:
    static void write(std::string& out, std::string_view status, std::string_view body,
                      bool keep_alive) {
        out.append("HTTP/1.1 ").append(status);
        if (!keep_alive) out.append("\r\nConnection: close");
        if (!body.empty()) out.append("\r\nContent-Type: application/json");
        out.append("\r\nContent-Length: ").append(std::to_string(body.size()));
        out.append("\r\n\r\n").append(body);
    }

    Tally tally_;
};

}  // namespace arena
