// C++20 on liburing: one ring and one listener (SO_REUSEPORT) per thread, multishot accept and receive, buffers that
// the kernel picks, one send in flight per connection, and the HTTP and JSON parsers of cpp-epoll.

#include "../cpp/service.hpp"
#include "../cpp/socket.hpp"

#include <liburing.h>

#include <thread>
#include <vector>

namespace {

using namespace arena;

constexpr unsigned submissions = 4096;
constexpr unsigned completions = 16384;
constexpr unsigned buffers = 2048;  // a power of two
constexpr unsigned buffer_bytes = 4096;
constexpr unsigned short buffer_group = 0;
constexpr size_t page_bytes = 4096;
// Nothing pauses a multishot receive, so a peer that does not read its responses is disconnected.
constexpr size_t waiting_bytes_max = 1 << 20;

// What a completion belongs to is in the lowest bits of its user data; the rest is the connection's address.
enum Kind : uint64_t { accept = 0, receive = 1, send = 2 };
constexpr uint64_t kind_mask = 3;

// It is deleted once the kernel refers to nothing in it.
struct alignas(8) Connection {
    explicit Connection(int number) : socket(number) {}
    Descriptor socket;
    std::string in;
    std::string waiting;
    std::string sending;
    bool is_receiving = false;
    bool is_sending = false;
    bool keep_alive = true;
};

int checked(int result) {
    if (result < 0) throw std::system_error(-result, std::system_category());
    return result;
}

class Loop {
public:
    Loop(Service& service, uint16_t port) : service_(service), listener_(listen_on(port, 0)) {
        io_uring_params parameters{};
        parameters.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE;
        parameters.cq_entries = completions;
        checked(io_uring_queue_init_params(submissions, &ring_, &parameters));
        register_buffers();
        start_accept();
    }
    Loop(const Loop&) = delete;

    [[noreturn]] void run() {
        for (;;) {
            const int result = io_uring_submit_and_wait(&ring_, 1);
            if (result != -EINTR) checked(result);
            io_uring_cqe* completion;
            unsigned head;
            unsigned count = 0;
            io_uring_for_each_cqe(&ring_, head, completion) {
                handle(*completion);
                ++count;
            }
            io_uring_cq_advance(&ring_, count);
        }
    }

private:
    void register_buffers() {
        // Neither is freed: the kernel uses them until the process ends.
        bytes_ = new char[size_t{buffers} * buffer_bytes];
        void* memory = std::aligned_alloc(page_bytes, buffers * sizeof(io_uring_buf));
        buffer_ring_ = static_cast<io_uring_buf_ring*>(memory);
        io_uring_buf_reg registration{};
        registration.ring_addr = reinterpret_cast<uint64_t>(memory);
        registration.ring_entries = buffers;
        registration.bgid = buffer_group;
        checked(io_uring_register_buf_ring(&ring_, &registration, 0));
        io_uring_buf_ring_init(buffer_ring_);
        for (unsigned id = 0; id < buffers; ++id) give(id);
    }

    void give(unsigned id) {
        char* buffer = bytes_ + size_t{id} * buffer_bytes;
        const auto number = static_cast<unsigned short>(id);
        io_uring_buf_ring_add(buffer_ring_, buffer, buffer_bytes, number, io_uring_buf_ring_mask(buffers), 0);
        io_uring_buf_ring_advance(buffer_ring_, 1);
    }

    io_uring_sqe* entry() {
        io_uring_sqe* entry = io_uring_get_sqe(&ring_);
        while (entry == nullptr) {
            checked(io_uring_submit(&ring_));
            entry = io_uring_get_sqe(&ring_);
        }
        return entry;
    }

    static void tag(io_uring_sqe* entry, Kind kind, Connection* connection) {
        io_uring_sqe_set_data64(entry, reinterpret_cast<uint64_t>(connection) | kind);
    }

    void start_accept() {
        io_uring_sqe* started = entry();
        io_uring_prep_multishot_accept(started, listener_.number(), nullptr, nullptr, SOCK_CLOEXEC);
        tag(started, Kind::accept, nullptr);
    }

    void start_receive(Connection& connection) {
        io_uring_sqe* started = entry();
        io_uring_prep_recv_multishot(started, connection.socket.number(), nullptr, 0, 0);
        started->flags |= IOSQE_BUFFER_SELECT;
        started->buf_group = buffer_group;
        tag(started, Kind::receive, &connection);
        connection.is_receiving = true;
    }

    void start_send(Connection& connection) {
        if (connection.is_sending || connection.waiting.empty()) return;
        connection.sending.clear();
        std::swap(connection.sending, connection.waiting);
        io_uring_sqe* started = entry();
        io_uring_prep_send(started, connection.socket.number(), connection.sending.data(),
                           connection.sending.size(), MSG_NOSIGNAL | MSG_WAITALL);
        tag(started, Kind::send, &connection);
        connection.is_sending = true;
    }

    void handle(const io_uring_cqe& completion) {
        const Kind kind = static_cast<Kind>(completion.user_data & kind_mask);
        auto* connection = reinterpret_cast<Connection*>(completion.user_data & ~kind_mask);
        if (kind == Kind::accept) return accepted(completion);
        if (kind == Kind::receive) received(*connection, completion);
        if (kind == Kind::send) sent(*connection, completion.res);
        if (!connection->is_receiving && !connection->is_sending) delete connection;
    }

    void accepted(const io_uring_cqe& completion) {
        if (!(completion.flags & IORING_CQE_F_MORE)) start_accept();
        if (completion.res < 0) return;
        auto* connection = new Connection(completion.res);
        set_option(connection->socket, IPPROTO_TCP, TCP_NODELAY);
        start_receive(*connection);
    }

    void received(Connection& connection, const io_uring_cqe& completion) {
        if (completion.flags & IORING_CQE_F_BUFFER) {
            const unsigned id = completion.flags >> IORING_CQE_BUFFER_SHIFT;
            const char* buffer = bytes_ + size_t{id} * buffer_bytes;
            if (completion.res > 0) take(connection, {buffer, static_cast<size_t>(completion.res)});
            give(id);
        }
        if (completion.flags & IORING_CQE_F_MORE) return;
        connection.is_receiving = false;
        // Without a free buffer the receive ends; they are given back within this turn.
        const bool goes_on = completion.res > 0 || completion.res == -ENOBUFS;
        if (goes_on && connection.keep_alive) start_receive(connection);
    }

    void take(Connection& connection, std::string_view bytes) {
        // Most requests arrive whole and are parsed in place.
        if (connection.in.empty()) {
            const size_t done = service_.answer_all(bytes, connection.keep_alive, connection.waiting);
            connection.in.assign(bytes.substr(done));
        } else {
            connection.in.append(bytes);
            const size_t done =
                service_.answer_all(connection.in, connection.keep_alive, connection.waiting);
            connection.in.erase(0, done);
        }
        if (connection.waiting.size() > waiting_bytes_max) end(connection);
        start_send(connection);
        if (!connection.keep_alive && !connection.is_sending) end(connection);
    }

    void sent(Connection& connection, int result) {
        connection.is_sending = false;
        // Less than everything means that the peer has gone.
        if (result < 0 || static_cast<size_t>(result) < connection.sending.size()) {
            connection.waiting.clear();
            end(connection);
        }
        start_send(connection);
        if (!connection.keep_alive && !connection.is_sending) end(connection);
    }

    // Completes the receive, after which the connection is deleted.
    static void end(Connection& connection) {
        connection.keep_alive = false;
        shutdown(connection.socket.number(), SHUT_RDWR);
    }

    Service& service_;
    Descriptor listener_;
    io_uring ring_;
    io_uring_buf_ring* buffer_ring_;
    char* bytes_;
};

// A ring with a single issuer belongs to the thread that makes it.
void serve(Service& service, uint16_t port) {
    try {
        Loop(service, port).run();
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        std::_Exit(1);
    }
}

}  // namespace

int main(int count, char** texts) {
    const auto [port, threads] = arguments(count, texts);
    Service service;
    std::vector<std::jthread> running;
    for (unsigned index = 0; index < threads; ++index)
        running.emplace_back(serve, std::ref(service), port);
}
