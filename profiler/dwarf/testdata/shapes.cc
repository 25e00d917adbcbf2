#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

extern volatile int sink;
volatile int sink;

namespace geo {

class Shape {
public:
	explicit Shape(int n) : sides_(n) { sink += n; }
	virtual ~Shape() { sink -= sides_; }
	virtual double area() const = 0;
	int sides() const { return sides_; }

private:
	int sides_;
};

class Square : public Shape {
public:
	explicit Square(double side) : Shape(4), side_(side) {}
	double area() const override { return side_ * side_; }

private:
	double side_;
};

namespace {

class Circle : public Shape {
public:
	explicit Circle(double r) : Shape(0), r_(r) {}
	double area() const override
	{
		struct Local {
			static double pi(int n)
			{
				double s = 0;
				for (int i = 0; i < n; i++)
					s += (i % 2 ? -4.0 : 4.0) / (2 * i + 1);
				return s;
			}
		};
		return Local::pi(sides() + 50) * r_ * r_;
	}

private:
	double r_;
};

template <typename T, typename F> T total(const std::vector<T> &v, F f)
{
	T sum{};
	for (const T &x : v)
		sum += f(x);
	return sum;
}

} // namespace
} // namespace geo

static int __attribute__((noinline)) words(const char *text)
{
	std::map<std::string, int> count;
	std::string word;
	for (; *text; text++) {
		if (*text == ' ') {
			count[word]++;
			word.clear();
		} else {
			word += *text;
		}
	}
	int best = 0;
	for (const auto &p : count)
		best = std::max(best, p.second);
	return best;
}

int main(int argc, char **argv)
{
	std::vector<std::unique_ptr<geo::Shape>> shapes;
	std::unordered_map<int, double> areas;
	for (int i = 0; i < argc * 100; i++) {
		if (i % 3)
			shapes.push_back(std::make_unique<geo::Square>(i));
		else
			shapes.push_back(std::make_unique<geo::Circle>(i));
		areas[i] = shapes.back()->area();
	}
	std::sort(shapes.begin(), shapes.end(), [](const auto &a, const auto &b) { return a->area() < b->area(); });
	std::vector<double> v;
	for (const auto &p : areas)
		v.push_back(p.second);
	double sum = geo::total(v, [&](double x) { return x * argc + sink; });
	try {
		if (sum < 0)
			throw std::string("negative");
	} catch (const std::string &s) {
		std::printf("%s\n", s.c_str());
	}
	std::printf("%f %d\n", sum, words(argv[0]));
	return 0;
}
