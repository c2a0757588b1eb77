// Octokit with the tap as its baseUrl; it follows the URLs and links that it is given.
import { Octokit } from '@octokit/core';

const octokit = new Octokit({ auth: 'ghp_dummy', baseUrl: process.argv[2] });
const repo = await octokit.request('GET /repos/{owner}/{repo}', { owner: 'o', repo: 'r' });
console.log('repo', repo.status, repo.data.full_name);
const followed = await octokit.request(`GET ${repo.data.url}`);
console.log('followed', followed.status, followed.data.full_name);
const issues = await octokit.request('GET /repos/o/r/issues');
const next = /<([^>]*)>; rel="next"/.exec(issues.headers.link)[1];
if (!next.startsWith(process.argv[2])) throw new Error(next);
const page = await octokit.request(`GET ${next}`);
console.log('next', page.status, page.data.length);
try {
  await octokit.request('GET /repos/o/none');
} catch (e) {
  console.log('missing', e.status);
}
