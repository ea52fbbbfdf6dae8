// Sockets that close themselves, and the listener and arguments that both servers use.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <system_error>
#include <utility>

namespace arena {

class Descriptor {
public:
    explicit Descriptor(int number) : number_(number) {
        if (number < 0) throw std::system_error(errno, std::system_category());
    }
    Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Descriptor& operator=(Descriptor&&) = delete;
    ~Descriptor() {
        if (number_ >= 0) close(number_);
    }
    int number() const { return number_; }

private:
    int number_;
};

inline void set_option(const Descriptor& socket, int level, int name) {
    const int on = 1;
    if (setsockopt(socket.number(), level, name, &on, sizeof on) != 0)
        throw std::system_error(errno, std::system_category());
}

inline Descriptor listen_on(uint16_t port, int type) {
    Descriptor listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | type, 0));
    set_option(listener, SOL_SOCKET, SO_REUSEADDR);
    set_option(listener, SOL_SOCKET, SO_REUSEPORT);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const auto* generic = reinterpret_cast<const sockaddr*>(&address);
    if (bind(listener.number(), generic, sizeof address) != 0 ||
        listen(listener.number(), SOMAXCONN) != 0)
        throw std::system_error(errno, std::system_category());
    return listener;
}

struct Arguments {
    uint16_t port;
    unsigned threads;
};

inline Arguments arguments(int count, char** texts) {
    const long port = count == 3 ? std::atol(texts[1]) : 0;
    const long threads = count == 3 ? std::atol(texts[2]) : 0;
    if (port < 1 || port > UINT16_MAX || threads < 1) {
        std::cerr << "usage: " << texts[0] << " PORT THREADS\n";
        std::exit(2);
    }
    return {static_cast<uint16_t>(port), static_cast<unsigned>(threads)};
}

}  // namespace arena
