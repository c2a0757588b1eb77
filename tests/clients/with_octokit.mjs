// Octokit, through undici's EnvHttpProxyAgent.
import { EnvHttpProxyAgent, setGlobalDispatcher } from 'undici';
import { Octokit } from '@octokit/core';

const agent = new EnvHttpProxyAgent();
setGlobalDispatcher(agent);
const octokit = new Octokit({ auth: 'ghp_dummy' });
for (let i = 0; i < 2; i++) {
  const reply = await octokit.request('GET /repos/{owner}/{repo}', { owner: 'o', repo: 'r' });
  console.log('repo', reply.status, reply.data.full_name);
}
console.log('post', (await octokit.request('POST /repos/{owner}/{repo}/issues', { owner: 'o', repo: 'r', title: 'x' })).status);
try {
  await octokit.request('GET /repos/o/none');
} catch (e) {
  console.log('missing', e.status);
}
await agent.close();
