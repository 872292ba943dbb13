#include "espalier/report/page.h"

#include "report/run_folder.h"

namespace espalier::report {
namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

class Page : public RunFolder {
 protected:
  std::string page_of(const std::vector<std::string>& names, const std::string& baseline = "") {
    std::vector<report::Run> runs;
    for (const std::string& name : names) runs.push_back(read_run(at(name)));
    auto groups = group_runs(runs, false);
    for (RunGroup& g : groups) g.baseline = runs[g.runs.front()].name == baseline;
    return make_page(runs, groups, make_figures(runs, groups), "espalier test");
  }
};

TEST(Escape, TextIsNeverMarkup) {
  EXPECT_EQ(escape("<b>\"a\" & 'c'</b>"), "&lt;b&gt;&quot;a&quot; &amp; &#39;c&#39;&lt;/b&gt;");
  EXPECT_EQ(escape("größe \xe2\x9c\x93"), "größe \xe2\x9c\x93");
  EXPECT_EQ(escape("a\xff"
                   "b\x01"
                   "c"),
            "a\xef\xbf\xbd"
            "b c");
}

TEST_F(Page, OneFileThatAsksForNothing) {
  write_run("a", 1, 0.9);
  const std::string page = page_of({"a"});
  EXPECT_EQ(page.compare(0, 15, "<!doctype html>"), 0);
  EXPECT_TRUE(contains(page, "Content-Security-Policy\" content=\"default-src 'none'"));
  for (const char* part : {"<link", " src=", "@import", "url("}) {
    // Of what we write; inside Vega's own text such words may stand.
    const std::string ours = page.substr(0, page.find("<script>"));
    EXPECT_FALSE(contains(ours, part)) << part;
  }
  EXPECT_TRUE(contains(page, "90.00 %")) << "the accuracy";
  EXPECT_TRUE(contains(page, "a &amp; b")) << "the environment";
  for (const char* id : {"loss", "weights", "layers", "configuration", "environment"})
    EXPECT_TRUE(contains(page, std::string("<section id=\"") + id + "\"")) << id;
}

TEST_F(Page, NamesOfRunsAndLayersAreText) {
  const std::string name = "<script>alert(1)<script>\" onload='x' \xc3\xa9\xe2\x9c\x93";
  write_run(name, 1, 0.9, "[reparam]\nname = \"</script><img src=x onerror=alert(2)>\"\n");
  write("b/config.toml", "[reparam]\nname = \"plain\"\n");
  write("b/metrics.jsonl", R"({"event":"step","step":1,"loss":1.0})"
                           "\n"
                           R"({"event":"warning","step":1,"text":"<i>w</i>"})"
                           "\n"
                           R"({"event":"topology","step":1,"layers":[{"name":"</script><b>","nnz":1}]})"
                           "\n");
  const std::string page = page_of({name, "b"});
  EXPECT_TRUE(contains(page, "&lt;script&gt;alert(1)&lt;script&gt;&quot; onload=&#39;x&#39; \xc3\xa9\xe2\x9c\x93"));
  EXPECT_FALSE(contains(page, "<script>alert"));
  EXPECT_FALSE(contains(page, "<img"));
  EXPECT_FALSE(contains(page, "</script><"));
  EXPECT_FALSE(contains(page, "<i>w"));
  if (can_draw()) {
    EXPECT_TRUE(contains(page, "\\u003c/script>")) << "in the data of the script";
  }
}

TEST_F(Page, FactsStandBesideTheBaseline) {
  write_run("a", 1, 0.9, "[method]\nname = \"x\"\n");
  write_run("dense", 1, 0.95, "[method]\nname = \"dense\"\n");
  write("dense/summary.json",
        R"({"status":"done","test_accuracy":0.95,"nnz":10,"train_seconds":6.0,"flops_forward":20})");
  const std::string page = page_of({"a", "dense"}, "dense");
  EXPECT_TRUE(contains(page, "0.4 × baseline")) << "weights";
  EXPECT_TRUE(contains(page, "0.25 × baseline")) << "time";
  EXPECT_FALSE(contains(page, "1 × baseline")) << "the baseline is not compared with itself";
}

TEST_F(Page, AnUnfinishedOrDamagedRunGivesAPage) {
  write("a/metrics.jsonl",
        "garbage\n"
        R"({"event":"step","step":2,"loss":"inf"})"
        "\n");
  const std::string page = page_of({"a"});
  EXPECT_TRUE(contains(page, "metrics.jsonl:1: damaged line"));
  EXPECT_TRUE(contains(page, "not finished"));
  write("b/config.toml", "");
  EXPECT_TRUE(contains(page_of({"b"}), "nothing to draw yet"));
}

TEST_F(Page, LicencesAreNamed) {
  write_run("a", 1, 0.9);
  const std::string page = page_of({"a"});
  if (!can_draw()) GTEST_SKIP() << "this program was built without Vega (no network at scripts/bootstrap)";
  EXPECT_TRUE(contains(page, "BSD-3-Clause"));
  EXPECT_TRUE(contains(page, "University of Washington Interactive Data Lab"));
  EXPECT_LT(page.size(), 1500000U);
}

}  // namespace
}  // namespace espalier::report
