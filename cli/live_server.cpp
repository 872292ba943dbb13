#include "live_server.h"

#include <httplib.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <thread>

#include "espalier/core/error.h"
#include "espalier/report/live.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/json.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHost = "127.0.0.1";
constexpr std::array<const char*, 6> kFiles{"metrics.jsonl", "timing.jsonl", "weights.jsonl",
                                            "summary.json",  "config.toml",  "env.json"};

void refuse(httplib::Response& response, int status, const std::string& text) {
  response.status = status;
  response.set_content(text + "\n", "text/plain; charset=utf-8");
}

const char* type_of(const std::string& file) {
  if (file.size() > 6 && file.compare(file.size() - 6, 6, ".jsonl") == 0) return "application/x-ndjson; charset=utf-8";
  if (file.size() > 5 && file.compare(file.size() - 5, 5, ".json") == 0) return "application/json; charset=utf-8";
  return "text/plain; charset=utf-8";
}

/// The run that the first group of the path names, or nullptr after an answer 404.
const fs::path* run_of(const httplib::Request& request, httplib::Response& response,
                       const std::vector<fs::path>& runs) {
  const std::string digits = request.matches[1];
  const std::size_t index = digits.size() < 9 ? std::stoul(digits) : runs.size();
  if (index < runs.size()) return &runs[index];
  refuse(response, 404, "no such run");
  return nullptr;
}

void send_file(const httplib::Request& request, httplib::Response& response, const std::vector<fs::path>& runs) {
  const fs::path* run = run_of(request, response, runs);
  if (run == nullptr) return;
  const std::string name = request.matches[2];
  std::error_code error;
  if (std::find(kFiles.begin(), kFiles.end(), name) == kFiles.end() || !fs::is_regular_file(*run / name, error))
    return refuse(response, 404, "no such file");
  std::size_t from = 0;
  if (request.has_param("from")) {
    const std::string digits = request.get_param_value("from");
    if (digits.empty() || digits.size() > 15 || digits.find_first_not_of("0123456789") != std::string::npos)
      return refuse(response, 400, "from: expected a number of bytes");
    from = std::stoull(digits);
  }
  const std::string content = train::read_file(*run / name);
  response.set_content(from < content.size() ? content.substr(from) : "", type_of(name));
}

}  // namespace

void serve_runs(const LiveServerOptions& options, const std::atomic<bool>& stop) {
  httplib::Server server;
  server.new_task_queue = [] { return new httplib::ThreadPool(4); };
  // Without SO_REUSEPORT, which the library sets: a second program must not share the port.
  server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  server.set_payload_max_length(1024);
  server.set_keep_alive_timeout(2);
  // The page draws with Vega, which compiles its expressions.
  server.set_default_headers({{"X-Content-Type-Options", "nosniff"},
                              {"Cache-Control", "no-store"},
                              {"Content-Security-Policy",
                               "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src "
                               "'unsafe-inline'; img-src data: blob:; connect-src 'self'; frame-ancestors 'none'"}});
  int port = 0;
  server.set_pre_routing_handler([&port](const httplib::Request& request, httplib::Response& response) {
    if (request.method != "GET") {
      response.set_header("Allow", "GET");
      refuse(response, 405, "this server only answers GET");
      return httplib::Server::HandlerResponse::Handled;
    }
    const std::string host = request.get_header_value("Host");
    if (host != fmt::format("{}:{}", kHost, port) && host != fmt::format("localhost:{}", port)) {
      refuse(response, 403, "this server is for " + std::string(kHost));
      return httplib::Server::HandlerResponse::Handled;
    }
    return httplib::Server::HandlerResponse::Unhandled;
  });
  server.set_exception_handler([](const httplib::Request&, httplib::Response& response, std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& e) {
      refuse(response, 500, e.what());
    }
  });

  std::mutex mutex;  // requests come in several threads; a LiveRun remembers how far it has read
  std::vector<report::LiveRun> live(options.runs.begin(), options.runs.end());
  const auto html = [&mutex](const std::function<std::string()>& make) {
    return [&mutex, &make](const httplib::Request&, httplib::Response& response) {
      const std::lock_guard<std::mutex> lock(mutex);
      response.set_content(make(), "text/html; charset=utf-8");
    };
  };
  server.Get("/", html(options.page));
  server.Get("/report", html(options.report));
  server.Get("/api/runs", [&](const httplib::Request&, httplib::Response& response) {
    train::Json list = train::Json::array();
    const std::lock_guard<std::mutex> lock(mutex);
    for (auto& run : live) {
      run.update();
      list.push_back(run.state());
    }
    response.set_content(train::to_json_text(list), "application/json; charset=utf-8");
  });
  server.Get(R"(/api/runs/(\d+)/([a-z]+\.[a-z]+))", [&](const httplib::Request& request, httplib::Response& response) {
    send_file(request, response, options.runs);
  });

  if (options.port == 0) {
    port = server.bind_to_any_port(kHost);
    ESPALIER_CHECK(port > 0, ErrorKind::failed, "no port of {} is free", kHost);
  } else {
    port = options.port;
    ESPALIER_CHECK(server.bind_to_port(kHost, port), ErrorKind::usage,
                   "port {} of {} can't be had, perhaps another program has it; --port 0 takes any free one", port,
                   kHost);
  }
  if (options.ready) options.ready(fmt::format("http://{}:{}/", kHost, port));
  std::atomic<bool> over{false};
  std::thread watcher([&] {
    while (!stop && !over) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    server.stop();
  });
  server.listen_after_bind();
  over = true;
  watcher.join();
}

}  // namespace espalier::cli
