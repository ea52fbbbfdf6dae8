// C++20 with no library, the oldest design: one thread per connection, which responds to one request and
// closes. THREADS is how many threads accept.

#include "../cpp/service.hpp"
#include "../cpp/socket.hpp"

#include <sys/time.h>

#include <thread>
#include <vector>

namespace {

using namespace arena;

constexpr size_t receive_bytes = 4096;
constexpr timeval patience{10, 0};

void send_all(const Descriptor& socket, std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t count = send(socket.number(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (count <= 0) return;
        bytes.remove_prefix(static_cast<size_t>(count));
    }
}

void serve(Service& service, const Descriptor& socket) {
    setsockopt(socket.number(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(socket.number(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    std::string in, out;
    char received[receive_bytes];
    for (;;) {
        const ssize_t count = recv(socket.number(), received, sizeof received, 0);
        if (count <= 0) return;
        in.append(received, static_cast<size_t>(count));
        Request request;
        size_t length = 0;
        switch (RequestParser::parse(in, request, length)) {
        case Outcome::needs_more:
            continue;
        case Outcome::complete:
            service.answer(request, false, out);
            break;
        case Outcome::refused:
            Service::refuse(out, false);
            break;
        }
        return send_all(socket, out);
    }
}

[[noreturn]] void accept_all(Service& service, const Descriptor& listener) {
    for (;;) {
        const int number = accept4(listener.number(), nullptr, nullptr, SOCK_CLOEXEC);
        if (number < 0) continue;
        try {
            std::thread([&service, socket = Descriptor(number)] { serve(service, socket); })
                .detach();
        } catch (const std::system_error&) {
            // No thread could be created: the connection was closed with the closure that held it.
        }
    }
}

}  // namespace

int main(int count, char** texts) {
    const auto [port, threads] = arguments(count, texts);
    try {
        Service service;
        const Descriptor listener = listen_on(port, 0);
        std::vector<std::jthread> running;
        for (unsigned index = 0; index < threads; ++index)
            running.emplace_back([&] { accept_all(service, listener); });
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
