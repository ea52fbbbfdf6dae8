// C++20 with no library: one epoll loop and one listener (SO_REUSEPORT) per thread, keep-alive and
// pipelining, its own HTTP and JSON parsers.

#include "../cpp/service.hpp"
#include "../cpp/socket.hpp"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <memory>
#include <thread>
#include <vector>

namespace {

using namespace arena;

constexpr size_t receive_bytes = 65536;
constexpr int events_max = 512;

// While a peer does not read its responses nothing is read from it, so neither buffer grows without bound.
struct Connection {
    Descriptor socket;
    std::string in;
    std::string out;
    bool waits_to_send = false;
    bool keep_alive = true;
};

class Loop {
public:
    Loop(Service& service, uint16_t port)
        : service_(service), listener_(listen_on(port, SOCK_NONBLOCK)),
          epoll_(epoll_create1(EPOLL_CLOEXEC)) {
        watch(EPOLL_CTL_ADD, listener_, EPOLLIN, nullptr);
    }

    [[noreturn]] void run() {
        std::array<epoll_event, events_max> events;
        for (;;) {
            const int count = epoll_wait(epoll_.number(), events.data(), events_max, -1);
            for (int index = 0; index < count; ++index) {
                auto* connection = static_cast<Connection*>(events[index].data.ptr);
                if (connection == nullptr) {
                    accept_all();
                } else if (!serve(*connection)) {
                    delete connection;
                }
            }
        }
    }

private:
    void watch(int operation, const Descriptor& socket, uint32_t interest, void* data) {
        epoll_event event{};
        event.events = interest;
        event.data.ptr = data;
        if (epoll_ctl(epoll_.number(), operation, socket.number(), &event) != 0)
            throw std::system_error(errno, std::system_category());
    }

    void accept_all() {
        for (;;) {
            const int flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
            const int number = accept4(listener_.number(), nullptr, nullptr, flags);
            if (number < 0) return;
            auto connection = std::make_unique<Connection>(Descriptor(number));
            set_option(connection->socket, IPPROTO_TCP, TCP_NODELAY);
            watch(EPOLL_CTL_ADD, connection->socket, EPOLLIN, connection.get());
            // From here on the loop owns it, and deletes it after its last event.
            connection.release();
        }
    }

    // Returns false once the connection has ended.
    bool serve(Connection& connection) {
        if (connection.waits_to_send) return send_out(connection);
        const ssize_t count =
            recv(connection.socket.number(), received_.data(), received_.size(), 0);
        if (count == 0) return false;
        if (count < 0) return errno == EAGAIN || errno == EINTR;
        const std::string_view bytes(received_.data(), static_cast<size_t>(count));
        // Most requests arrive whole and are parsed in place.
        if (connection.in.empty()) {
            const size_t done = service_.answer_all(bytes, connection.keep_alive, connection.out);
            connection.in.assign(bytes.substr(done));
        } else {
            connection.in.append(bytes);
            const size_t done =
                service_.answer_all(connection.in, connection.keep_alive, connection.out);
            connection.in.erase(0, done);
        }
        return send_out(connection);
    }

    bool send_out(Connection& connection) {
        std::string& out = connection.out;
        if (!out.empty()) {
            const ssize_t count =
                send(connection.socket.number(), out.data(), out.size(), MSG_NOSIGNAL);
            if (count < 0 && errno != EAGAIN && errno != EINTR) return false;
            out.erase(0, static_cast<size_t>(std::max<ssize_t>(count, 0)));
        }
        const bool waits = !out.empty();
        if (!waits && !connection.keep_alive) return false;
        if (waits != connection.waits_to_send) {
            connection.waits_to_send = waits;
            watch(EPOLL_CTL_MOD, connection.socket, waits ? EPOLLOUT : EPOLLIN, &connection);
        }
        return true;
    }

    Service& service_;
    Descriptor listener_;
    Descriptor epoll_;
    std::array<char, receive_bytes> received_;
};

}  // namespace

int main(int count, char** texts) {
    const auto [port, threads] = arguments(count, texts);
    try {
        Service service;
        std::vector<std::unique_ptr<Loop>> loops;
        for (unsigned index = 0; index < threads; ++index)
            loops.push_back(std::make_unique<Loop>(service, port));
        std::vector<std::jthread> running;
        for (auto& loop : loops) running.emplace_back([&loop] { loop->run(); });
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
